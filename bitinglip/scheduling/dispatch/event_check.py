"""The check of what a worker says of a job: events of the job's kind, and no more than it can be.

The protocol's types bound each event; what they cannot know is the job.
"""

from bitinglip.scheduling.job import kind_of
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
_MAX_BYTES = 64 << 20  #: of a job's events, and beside it for each unit of its cost:
_MAX_BYTES_PER_COST = {
    "text": 1 << 10,
    "image": 1 << 20,
    "speech": 1 << 20,
    "transcription": 1 << 16,
}


class EventCheck:
    """Takes the events of one job from one worker."""

    __slots__ = ("_job", "_kinds", "_left")

    def __init__(self, job: protocol.Job, cost: float) -> None:
        self._job = job
        kind = kind_of(type(job))
        self._kinds = _OF_KIND[kind]
        self._left = _MAX_BYTES + cost * _MAX_BYTES_PER_COST[kind]

    def take(self, event: protocol.JobEvent) -> None:
        """Raise BadFrame for an event that a sound worker does not send."""
        if type(event) not in self._kinds:
            raise BadFrame(f"{type(event).__name__} for a {type(self._job).__name__}")
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
            case protocol.ImageDone(images=images):
                if isinstance(self._job, protocol.ImageJob) and len(images) > len(self._job.seeds):
                    raise BadFrame(f"{len(images)} images for one job")
                return _EVENT_BYTES * len(images)
            case _:
                return 0
