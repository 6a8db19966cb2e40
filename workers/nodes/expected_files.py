"""Says which files a worker on another machine may send: those of its running jobs, each once.

An agent that was broken into could fill the gateway's disk otherwise.
"""

from collections.abc import Iterator

from workers.framing import BadFrame, FrameReader, decode_command, split_commands
from workers.nodes.files import MOST_FILE_BYTES
from workers.nodes.link import decode
from workers.nodes.messages import File
from workers.protocol import (
    Ends,
    ImageJob,
    SpeechJob,
    audio_file_name,
    image_file_name,
)

#: the tags of jobs that make files, as they are in the first bytes of these
_MARKS = (b"\xa4type\xa5image", b"\xa4type\xa6speech")
_MARK_BYTES = 3 + max(map(len, _MARKS))  #: with what is before: how many fields follow
#: bytes of a pixel, and of all else in a picture
_PIXEL_BYTES, _PICTURE_BYTES = 5, 1 << 20
#: bytes of a second of sound; seconds of a text, and for each character: each may be a sentence
_SECOND_BYTES, _SECONDS, _SECONDS_PER_CHARACTER = 96_000, 60.0, 15.0


class ExpectedFiles:
    """Follows what one worker is sent and what it tells."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, int]] = {}  #: by job, the names that are to come
        self._events = FrameReader()

    def sent(self, commands: bytes) -> None:
        """Take note of the jobs that the worker is sent."""
        if not any(mark in commands for mark in _MARKS):
            return
        for each in split_commands(commands):  # long texts beside them are not decoded
            begin = bytes(memoryview(each)[:_MARK_BYTES])
            if any(mark in begin for mark in _MARKS):
                job = decode_command(each)
                assert isinstance(job, ImageJob | SpeechJob)
                self._jobs[job.id] = dict(_made_by(job))

    def told(self, events: bytes) -> None:
        """Take note of the jobs that have ended. Raises BadFrame."""
        if self._jobs:
            for event in self._events.feed(events):
                if isinstance(event, Ends):
                    self._jobs.pop(event.id, None)

    def check(self, announced: bytes) -> None:
        """Raise BadFrame for a file that no running job makes, or that is larger than it can be."""
        file = decode(announced, File)
        for files in self._jobs.values():
            if (most := files.pop(file.name, None)) is not None:
                if file.size > most:
                    raise BadFrame("a file is larger than its job can make it")
                return
        raise BadFrame("a file is of no job that runs")


def _made_by(command: ImageJob | SpeechJob) -> Iterator[tuple[str, int]]:
    """Yield the names of the files that a job makes, and how many bytes each may have."""
    match command:
        case ImageJob():
            picture = _PICTURE_BYTES + _PIXEL_BYTES * command.width * command.height
            for index in range(len(command.seeds)):
                yield image_file_name(command.id, index, command.format), picture
        case SpeechJob():
            seconds = _SECONDS + _SECONDS_PER_CHARACTER * len(command.text) / (command.speed or 1.0)
            most = min(int(seconds * _SECOND_BYTES), MOST_FILE_BYTES)
            yield audio_file_name(command.id, command.format), most
