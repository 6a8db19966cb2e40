"""The check of what a worker says of a job: events of the job's kind, and no more than it can be.

The protocol's types bound each event; what they cannot know is the job.
"""

from bitinglip.scheduling.job import ImageJob, Job
from workers import protocol
from workers.framing import BadFrame

_OF_ANY = (protocol.Started, protocol.Progress, protocol.Failed, protocol.Cancelled)
_OF_KIND: dict[str, frozenset[type]] = {
    "text": frozenset({*_OF_ANY, protocol.TextDelta, protocol.TextDone}),
    "image": frozenset({*_OF_ANY, protocol.ImageDone}),
    "speech": frozenset({*_OF_ANY, protocol.AudioDelta, protocol.SpeechDone}),
    "transcription": frozenset({*_OF_ANY, protocol.SegmentDelta, protocol.TranscriptionDone}),
}
_EVENT_BYTES = 256  #: about what an event takes beside its text or sound
_LOGPROB_BYTES = 64
_MOST_BYTES = 64 << 20  #: of a job's events, and beside it for each unit of its work:
_MOST_BYTES_PER_WORK = {
    "text": 1 << 10,
    "image": 1 << 20,
    "speech": 1 << 20,
    "transcription": 1 << 16,
}


class EventCheck:
    """Takes the events of one job from one worker."""

    __slots__ = ("_job", "_kinds", "_left")

    def __init__(self, job: Job, work: float) -> None:
        self._job = job
        self._kinds = _OF_KIND[job.kind]
        self._left = _MOST_BYTES + work * _MOST_BYTES_PER_WORK[job.kind]

    def take(self, event: protocol.JobEvent) -> None:
        """Raises BadFrame for an event that a sound worker does not send."""
        if type(event) not in self._kinds:
            raise BadFrame(f"{type(event).__name__} for a job of the kind {self._job.kind}")
        if isinstance(event, protocol.TextDelta) and not event.logprobs:
            self._left -= _EVENT_BYTES + len(event.text)  # quick: it comes for each token
        else:
            self._left -= _EVENT_BYTES + self._size(event)
        if self._left < 0:
            raise BadFrame("more events for one job than it can have")

    def _size(self, event: protocol.JobEvent) -> int:
        match event:
            case protocol.TextDelta(text=text, logprobs=logprobs):
                return len(text) + sum(_LOGPROB_BYTES * (1 + len(each.top)) for each in logprobs)
            case protocol.AudioDelta(samples=samples):
                return len(samples)
            case protocol.Progress(preview=preview):
                return len(preview)
            case protocol.SegmentDelta(segment=segment):
                return (
                    len(segment.text) + 8 * len(segment.tokens) + _EVENT_BYTES * len(segment.words)
                )
            case protocol.ImageDone(pictures=pictures):
                if isinstance(self._job, ImageJob) and len(pictures) > len(self._job.seeds):
                    raise BadFrame(f"{len(pictures)} images for one job")
                return _EVENT_BYTES * len(pictures)
            case _:
                return 0
