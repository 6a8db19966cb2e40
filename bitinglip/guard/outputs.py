"""Guards what a job gives out: its events, as they come, before clients can read them.

A guarded job always streams to the gateway, also when its client wants one body: so its text is
looked at while it comes, and no long one at once. Views, tasks and WebSockets read what is left.
"""

from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from bitinglip.errors import ContentFiltered
from bitinglip.guard.checked import TextCheck
from bitinglip.guard.modes import Modes
from bitinglip.guard.scanner import Piece
from bitinglip.guard.text_output import TextOutput
from bitinglip.guard.watch import IMAGES, Watch
from bitinglip.work import traits_of
from workers import protocol


class OutputGuard(Protocol):
    """Guards the events of one job."""

    @property
    def work(self) -> protocol.Job:
        """Return what is sent to the worker."""
        ...

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        """Return the events to show now. Raises the error that the job ends with."""
        ...

    def reset(self) -> None:
        """Start again: the job runs again, and nothing of it was seen."""
        ...

    @property
    def altered(self) -> bool:
        """Return whether what is shown is not what the worker has made, or nothing has checked it.

        Such an answer is this job's alone: no cache may keep it.
        """
        ...


class TranscriptionOutput:
    """Guards a transcript: its segments as they come, then the whole."""

    def __init__(self, work: protocol.TranscriptionJob, check: Callable[[], TextCheck]) -> None:
        self.work = msgspec.structs.replace(work, stream=True)
        self._streams = work.stream
        self._new_check = check
        self.reset()

    def reset(self) -> None:
        self._checked = self._new_check()
        self._pending: deque[protocol.SegmentDelta] = deque()
        self._pieces: deque[Piece] = deque()  #: decided, of segments that are not
        self._told = 0  #: characters that they hold
        self._shown: list[protocol.Segment] = []

    @property
    def altered(self) -> bool:
        return self._checked.altered

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        match event:
            case protocol.SegmentDelta():
                return self._take_segment(event)
            case protocol.Progress():
                return (event,) if self._streams else ()
            case protocol.TranscriptionDone():
                return self._take_done(event)
            case _:
                return (event,)

    def _take_segment(self, event: protocol.SegmentDelta) -> Sequence[protocol.JobEvent]:
        self._pending.append(event)
        return self._release(self._checked.feed(event.segment.text))

    def _take_done(self, done: protocol.TranscriptionDone) -> Sequence[protocol.JobEvent]:
        streamed = len(self._shown) + len(self._pending) == len(done.segments)
        if not streamed:
            self.reset()
            for number, segment in enumerate(done.segments):
                self._take_segment(protocol.SegmentDelta(id=done.id, segment=segment, index=number))
        last = self._release(self._checked.feed("", last=True))
        events = last if streamed else ()
        if not self._checked.redacted:
            return (*events, done)
        text = "".join(segment.text for segment in self._shown).strip()
        shown = msgspec.structs.replace(done, text=text, segments=tuple(self._shown))
        return (*events, shown)

    def _release(self, pieces: Iterable[Piece]) -> Sequence[protocol.JobEvent]:
        """Show the segments whose text is told in full."""
        events = []
        for piece in pieces:
            self._pieces.append(piece)
            self._told += piece.size
        while self._pending and len(self._pending[0].segment.text) <= self._told:
            event = self._pending.popleft()
            segment = self._shown_segment(event.segment)
            self._shown.append(segment)
            events.append(msgspec.structs.replace(event, segment=segment))
        return events if self._streams else ()

    def _shown_segment(self, segment: protocol.Segment) -> protocol.Segment:
        """Take a segment's text from the pieces; without words and tokens if some is left out."""
        text, left, whole = "", len(segment.text), True
        while left:
            piece = self._pieces.popleft()
            taken = min(left, piece.size)
            if piece.replaced:
                shown, rest, whole = piece.text, "", False
            else:
                shown, rest = piece.text[:taken], piece.text[taken:]
            if taken < piece.size:
                left_over = piece._replace(text=rest, size=piece.size - taken)
                self._pieces.appendleft(left_over)
            text += shown
            left -= taken
            self._told -= taken
        if whole:
            return segment
        return msgspec.structs.replace(segment, text=text, words=(), tokens=())


class ImageOutput:
    """Refuses images that the model's own safety checker has flagged."""

    def __init__(self, work: protocol.ImageJob, watch: Watch) -> None:
        self.work = work
        self._watch = watch

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        if isinstance(event, protocol.Progress) and event.preview:
            return (msgspec.structs.replace(event, preview=b""),)  # nothing has checked it
        if isinstance(event, protocol.ImageDone):
            flagged = [number for number, image in enumerate(event.images) if image.filtered]
            if flagged:
                self._watch.found(Tally({IMAGES: len(flagged)}), "output", "block")
                raise ContentFiltered(
                    "The model's safety checker has flagged an image.", details={"images": flagged}
                )
        return (event,)

    def reset(self) -> None:
        """Do nothing: each event is looked at by itself."""

    @property
    def altered(self) -> bool:
        return False


def output_of(
    work: protocol.Job, modes: Modes, check: Callable[[], TextCheck], watch: Watch
) -> OutputGuard | None:
    """Return the guard of a job's events; None if they pass as they are."""
    texts = modes.output != "off" or modes.words_output != "off"
    match traits_of(work).guarded:
        case "choices" if texts:
            assert isinstance(work, protocol.TextJob)
            return TextOutput(work, check)
        case "segments" if texts:
            assert isinstance(work, protocol.TranscriptionJob)
            return TranscriptionOutput(work, check)
        case "images" if modes.flagged_images == "refuse":
            assert isinstance(work, protocol.ImageJob)
            return ImageOutput(work, watch)
        case _:
            return None
