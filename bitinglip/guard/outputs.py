"""The guard of what a job gives out: its events, as they come, before anybody can read them.

A guarded job always streams to the gateway, also when its client wants one body: so its text is
looked at while it comes, and no long one at once. Views, tasks and WebSockets read what is left.
"""

from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, assert_never

import msgspec

from bitinglip.errors import ContentFiltered
from bitinglip.guard.modes import Modes
from bitinglip.guard.scanner import Kinds, Piece, Scanner
from bitinglip.guard.watch import IMAGES, WORDS, Found, Watch, filtered, refusal
from bitinglip.guard.words import WordList, WordScan
from workers import protocol


class Output(Protocol):
    """Guards the events of one job."""

    @property
    def work(self) -> protocol.Job:
        """Return what is sent to the worker."""
        ...

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        """Return the events to show now. Raises the error that the job ends with."""
        ...

    def reset(self) -> None:
        """Begin anew: the job runs again, and nothing of it was seen."""
        ...

    @property
    def altered(self) -> bool:
        """Return whether what is shown is not what the worker has made, or nothing has checked it.

        Such an answer is this job's alone: no cache may keep it.
        """
        ...


class Checked:
    """Scans one text that comes in parts, and does what the modes say about what is found."""

    def __init__(self, kinds: Kinds, modes: Modes, words: WordList, watch: Watch) -> None:
        self.mode, self._words_mode = modes.output, modes.words_output
        self._watch = watch
        blocks_words = self._words_mode == "block"
        self._holds = blocks_words or self.mode in ("redact", "block")
        self._scanner = Scanner(
            frozenset() if self.mode == "off" else kinds,
            redacts=self.mode == "redact",
            hold=words.begun if blocks_words else None,
        )
        self._words = None if self._words_mode == "off" else WordScan(words)
        self._passes = False
        self.redacted = False  #: something was left out

    @property
    def altered(self) -> bool:
        return self.redacted or self._passes

    def feed(self, text: str, *, last: bool = False) -> list[Piece]:
        """Return what may be shown now.

        Raises PersonalDataDetected, ContentFiltered or GuardFailed.
        """
        if self._passes:
            return [Piece(text, len(text))]
        try:
            listed = self._words.feed(text, last=last) if self._words is not None else 0
            pieces = self._scanner.feed(text, last=last)
        except Exception as error:  # noqa: BLE001  the setting says what happens then
            if (refused := self._watch.failed(error, "output")) is not None:
                raise refused from None
            self._passes = True
            text = self._scanner.give_up() + text if self._holds else text
            return [Piece(text, len(text))]
        self._watch.works("output")
        if listed:
            self._watch.found(Tally({WORDS: listed}), "output", self._words_mode)
            if self._words_mode == "block":
                raise filtered(listed, "output")
        found: Found = Tally(each.kind for each in pieces if each.kind and each.counts)
        if found:
            self._watch.found(found, "output", self.mode)
            if self.mode == "block":
                raise refusal(found, "output")
            self.redacted = self.redacted or self.mode == "redact"
        return pieces if self._holds else [Piece(text, len(text))]


class _Delta(NamedTuple):
    """A delta that is not told in full yet; it covers some of the worker's text."""

    start: int
    end: int
    token: int  #: the index of its last one
    logprobs: tuple[protocol.TokenLogprob, ...]


class TextOutput:
    """Guards generated text, and the tokens and log-probabilities that would tell it."""

    def __init__(self, work: protocol.TextJob, check: Callable[[], Checked]) -> None:
        self.work = msgspec.structs.replace(work, stream=True)
        self._streams = work.stream
        self._new_check = check
        self.reset()

    def reset(self) -> None:
        self._checked = self._new_check()
        self._came = self._told = self._index = 0  #: characters of the worker's text
        self._shown: list[str] = []
        self._logprobs: list[protocol.TokenLogprob] = []
        self._pending: deque[_Delta] = deque()
        self._gaps: list[tuple[int, int]] = []  #: where something was left out

    @property
    def altered(self) -> bool:
        return self._checked.altered

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        match event:
            case protocol.TextDelta():
                start, self._came = self._came, self._came + len(event.text)
                logprobs = event.logprobs if self._are_of(event) else ()
                self._pending.append(_Delta(start, self._came, event.index, logprobs))
                return self._release(event.id, self._checked.feed(event.text))
            case protocol.TextDone():
                return self._take_done(event)
            case _:
                return (event,)

    def _take_done(self, done: protocol.TextDone) -> Sequence[protocol.JobEvent]:
        if self._came == len(done.text):
            events = self._release(done.id, self._checked.feed("", last=True))
        else:  # the engine has streamed nothing, or something else
            self.reset()
            self._release(done.id, self._checked.feed(done.text, last=True))
            events = ()
        logprobs = tuple(self._logprobs) if self._checked.redacted else done.choices[0].logprobs
        choice = msgspec.structs.replace(
            done.choices[0], text="".join(self._shown), logprobs=logprobs
        )
        shown = msgspec.structs.replace(done, choices=(choice,))
        return (*events, shown)

    def _are_of(self, event: protocol.TextDelta) -> bool:
        """Return whether the tokens hold the text of the delta and nothing that is held back."""
        if self._checked.mode != "redact" or not event.logprobs:
            return True
        return "".join([each.token for each in event.logprobs]) == event.text

    def _release(self, job_id: str, pieces: Iterable[Piece]) -> Sequence[protocol.JobEvent]:
        """Show the pieces as one delta, with the tokens whose text is told in full."""
        text = ""
        logprobs: tuple[protocol.TokenLogprob, ...] = ()
        for piece in pieces:
            if piece.replaced:
                self._gaps.append((self._told, self._told + piece.size))
            self._told += piece.size
            text += piece.text
        while self._pending and self._pending[0].end <= self._told:
            delta = self._pending.popleft()
            self._index = delta.token
            if not self._touches_gap(delta):
                logprobs += delta.logprobs
        if self._pending and self._pending[0].start < self._told:
            self._index = self._pending[0].token
        self._shown.append(text)
        self._logprobs += logprobs
        if not self._streams or not (text or logprobs):
            return ()
        return (protocol.TextDelta(id=job_id, text=text, index=self._index, logprobs=logprobs),)

    def _touches_gap(self, delta: _Delta) -> bool:
        """Return whether any of the delta's text was left out, or is next to what was."""
        while self._gaps and self._gaps[0][1] < delta.start:
            del self._gaps[0]
        return bool(self._gaps) and self._gaps[0][0] <= delta.end


class TranscriptionOutput:
    """Guards a transcript: its segments as they come, then the whole."""

    def __init__(self, work: protocol.TranscriptionJob, check: Callable[[], Checked]) -> None:
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
    work: protocol.Job, modes: Modes, check: Callable[[], Checked], watch: Watch
) -> Output | None:
    """Return the guard of a job's events; None if they pass as they are."""
    texts = modes.output != "off" or modes.words_output != "off"
    match work:
        case protocol.TextJob():
            return TextOutput(work, check) if texts else None
        case protocol.TranscriptionJob():
            return TranscriptionOutput(work, check) if texts else None
        case protocol.ImageJob():
            return ImageOutput(work, watch) if modes.flagged_images == "refuse" else None
        case protocol.SpeechJob() | protocol.EmbeddingJob():
            return None
        case _:
            assert_never(work)
