"""Checks a worker's events of a job: events of the job's kind, and no more than it can be.

The protocol's types bound each event; what they cannot know is the job.
"""

from bitinglip.scheduling.job import Job
from workers import protocol
from workers.framing import BadFrame

_EVENT_BYTES = 256  #: about what an event takes beside its text or sound
_LOGPROB_BYTES = 64


class EventCheck:
    """Takes the events of one job from one worker."""

    __slots__ = ("_choices", "_job", "_left", "_types")

    def __init__(self, job: Job, cost: float) -> None:
        self._job = work = job.work
        self._choices = work.choices if isinstance(work, protocol.TextJob) else 0
        traits = job.traits
        self._types = traits.event_types
        self._left = traits.most_event_bytes(cost)

    def take(self, event: protocol.JobEvent) -> None:
        """Raise BadFrame for an event that a sound worker does not send."""
        if type(event) not in self._types:
            raise BadFrame(f"{type(event).__name__} for a {type(self._job).__name__}")
        if isinstance(event, protocol.TextDelta):
            if event.choice >= self._choices:
                raise BadFrame(f"choice {event.choice} of {self._choices}")
            # Quick: it comes for each token.
            size = len(event.text) if _is_plain(event) else _text_size(event)
        else:
            size = 0 if isinstance(event, protocol.Started) else self._size(event)
        self._left -= _EVENT_BYTES + size
        if self._left < 0:
            raise BadFrame("more events for one job than it can have")

    def _size(self, event: protocol.JobEvent) -> int:
        match event:
            case protocol.TextDone(choices=choices):
                if len(choices) != self._choices:
                    raise BadFrame(f"{len(choices)} choices for {self._choices}")
                return 0  # its frame bounds it
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


def _is_plain(delta: protocol.TextDelta) -> bool:
    return not (delta.logprobs or delta.reasoning or delta.tool_calls)


def _text_size(delta: protocol.TextDelta) -> int:
    calls = sum(_EVENT_BYTES + len(call.arguments) for call in delta.tool_calls)
    scores = sum(_LOGPROB_BYTES * (1 + len(each.top)) for each in delta.logprobs)
    return len(delta.text) + len(delta.reasoning) + calls + scores
