"""Tells what a job may use and what it has used, by its kind. Pure."""

from bitinglip import errors
from bitinglip.access.usage.amounts import NOTHING, Amounts, Units, amounts
from bitinglip.scheduling.event_log import EventLog, error_of
from bitinglip.scheduling.job import Job
from workers import protocol


def most_used(job: Job, *, context: int | None, gpu_us: int, prompt_bytes: int = 0) -> Units:
    """Return what a job may use at most, and of seconds what it is expected to use.

    A token holds a byte at least. ``context``: the most tokens that its model takes, if known;
    ``gpu_us``: what requests to its model take; ``prompt_bytes``: of the longest text that the
    model puts before an input.
    """
    tokens, pixels, audio_us = job.traits.most_used(job.file_bytes, context, prompt_bytes)
    return 1, tokens, pixels, audio_us, gpu_us


def used(event_log: EventLog, last: protocol.Final, gpu_us: int) -> Amounts:
    """Return what a job has used, by its worker's last event and by what it had handed over.

    One that no worker had has used nothing. One that the server has failed is no request of its
    key, and only what its client got of it counts; running out of time is no such failure.
    """
    if event_log.dispatched is None:
        return NOTHING
    requests = 1
    if _is_our_failure(event_log.final or last):
        if not event_log.output_seen:
            return NOTHING
        requests = gpu_us = 0
    made = event_log.job.traits.used(event_log.events, last)
    _, prompt, completion, pixels, audio_us, _ = made
    return amounts((requests, prompt, completion, pixels, audio_us, gpu_us))


def cancelled(event_log: EventLog) -> protocol.Cancelled:
    """Make the end of a job that the gateway cancels, with what its client has seen of it.

    Its worker tells later what it had done by then, which is charged.
    """
    prompt, completion = event_log.job.traits.handed_over(event_log.events)
    progress = (e.step for e in reversed(event_log.events) if isinstance(e, protocol.Progress))
    return protocol.Cancelled(
        id=event_log.job.id,
        prompt_tokens=prompt,
        completion_tokens=completion,
        steps=next(progress, 0),
    )


def _is_our_failure(final: protocol.Final) -> bool:
    if not isinstance(final, protocol.Failed):
        return False
    error = error_of(final)
    return errors.answer(error).status >= 500 and not isinstance(error, errors.Timeout)


def tokens_of(event_log: EventLog, last: protocol.Final | None = None) -> tuple[int, int]:
    """Return the tokens of the prompt and those sampled; before the end those handed over.

    last: the last event of the job's worker, if it is another than the log's.
    """
    return event_log.job.traits.tokens(event_log.events, last or event_log.final)
