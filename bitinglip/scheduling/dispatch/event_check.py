"""The check of what a worker says of a job: events of the job's kind, and no more than it can be.

The protocol's types bound each event; what they cannot know is the job.
"""

from bitinglip.scheduling.dispatch.model_queue import InFlightJob
from bitinglip.scheduling.job import ImageJob
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


def check(entry: InFlightJob, event: protocol.JobEvent) -> None:
    """Count an event of a job. Raises BadFrame for one that a sound worker does not send."""
    kind = entry.event_log.job.kind
    if type(event) not in _OF_KIND[kind]:
        raise BadFrame(f"{type(event).__name__} for a job of the kind {kind}")
    if isinstance(event, protocol.ImageDone) and len(event.pictures) > _most_files(entry):
        raise BadFrame(f"{len(event.pictures)} images for one job")
    entry.told += _EVENT_BYTES + _size(event)
    if entry.told > _MOST_BYTES + entry.work * _MOST_BYTES_PER_WORK[kind]:
        raise BadFrame(f"{entry.told} bytes of events for one job")


def _most_files(entry: InFlightJob) -> int:
    job = entry.event_log.job
    return len(job.seeds) if isinstance(job, ImageJob) else 1


def _size(event: protocol.JobEvent) -> int:
    match event:
        case protocol.TextDelta(text=text, logprobs=logprobs):
            return len(text) + sum(_LOGPROB_BYTES * (1 + len(each.top)) for each in logprobs)
        case protocol.AudioDelta(samples=samples):
            return len(samples)
        case protocol.Progress(preview=preview):
            return len(preview)
        case protocol.SegmentDelta(segment=segment):
            return len(segment.text) + 8 * len(segment.tokens) + _EVENT_BYTES * len(segment.words)
        case _:
            return 0
