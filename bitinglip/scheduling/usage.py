"""Tells what a job may use and what it has used, by its kind. Pure."""

from collections.abc import Sequence
from typing import assert_never

from bitinglip import errors
from bitinglip.access.usage.amounts import MILLION, NOTHING, Amounts, Units
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import cost, prompts_of, tools_bytes
from workers import protocol

_TEMPLATE_TOKENS = 128  #: that a chat template may add, and for each message
_MESSAGE_TOKENS = 16
_SAMPLE_BYTES = 2


def most_used(job: Job, *, context: int | None, gpu_us: int) -> Units:
    """Return what a job may use at most, and of seconds what it is expected to use.

    A token holds a byte at least. ``context``: the most tokens that its model takes, if known;
    ``gpu_us``: what requests to its model take.
    """
    work, tokens, pixels, audio_us = job.work, 0, 0, 0
    match work:
        case protocol.TextJob(count_only=True):
            pass  # nothing is read or made of its tokens
        case protocol.TextJob():
            tokens = _text_tokens(work, context)
        case protocol.ImageJob():
            pixels = len(work.seeds) * work.width * work.height
        case protocol.SpeechJob() | protocol.TranscriptionJob():
            audio_us = max(1, round(cost(job) * MILLION))
        case protocol.EmbeddingJob():
            more = _MESSAGE_TOKENS + _bytes(work.query or "")
            each = [_bytes(text) + more for text in work.texts]
            tokens = sum(each if context is None else (min(size, context) for size in each))
        case _:
            assert_never(work)
    return 1, tokens, pixels, audio_us, gpu_us


def used(event_log: EventLog, last: protocol.Final, gpu_us: int) -> Amounts:
    """Return what a job has used, by its worker's last event and by what it had handed over.

    One that no worker had has used nothing. One that the server has failed is no request of its
    key, and only what its client got of it counts; running out of time is no such failure.
    """
    work, events, requests = event_log.job.work, event_log.events, 1
    if event_log.dispatched is None:
        return NOTHING
    if _is_our_failure(event_log.final or last):
        if not event_log.output_seen:
            return NOTHING
        requests = gpu_us = 0
    match work:
        case protocol.TextJob(count_only=True):
            return Amounts(requests, gpu_us=gpu_us)
        case protocol.TextJob() | protocol.EmbeddingJob():
            prompt, completion = tokens_of(event_log, last)
            return Amounts(requests, prompt, completion, gpu_us=gpu_us)
        case protocol.ImageJob():
            made = len(last.images) if isinstance(last, protocol.ImageDone) else 0
            return Amounts(requests, pixels=made * work.width * work.height, gpu_us=gpu_us)
        case protocol.SpeechJob():
            seconds = last.duration if isinstance(last, protocol.SpeechDone) else _spoken(events)
            return Amounts(requests, audio_us=round(seconds * MILLION), gpu_us=gpu_us)
        case protocol.TranscriptionJob():
            if isinstance(last, protocol.TranscriptionDone):
                seconds = last.duration
            else:
                seconds = _transcribed(events)
            return Amounts(requests, audio_us=round(seconds * MILLION), gpu_us=gpu_us)
        case _:
            assert_never(work)


def cancelled(event_log: EventLog) -> protocol.Cancelled:
    """Make the end of a job that the gateway cancels, with what its client has seen of it.

    Its worker tells later what it had done by then, which is charged.
    """
    prompt, completion = _handed_over(event_log)
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


def _text_tokens(work: protocol.TextJob, context: int | None) -> int:
    """Return the tokens of all prompts and of all texts that are made, at most."""
    of_each = work.sequences // max(1, len(work.prompts))  #: texts of a prompt
    made = of_each * work.sampling.max_tokens
    if context is None:
        return sum(_prompt_bytes(work)) + work.sequences * work.sampling.max_tokens
    # A prompt counts once, and with each of its texts it is within the context.
    return sum(min(size + made, of_each * context) for size in _prompt_bytes(work))


def _prompt_bytes(work: protocol.TextJob) -> list[int]:
    """Return more tokens than each prompt has, with its template."""
    if work.messages is None:
        return [
            _MESSAGE_TOKENS + (_bytes(each) if isinstance(each, str) else len(each))
            for each in prompts_of(work)
        ]
    tokens = _TEMPLATE_TOKENS + (_TEMPLATE_TOKENS + tools_bytes(work) if work.tools else 0)
    for message in work.messages:
        tokens += _MESSAGE_TOKENS * (1 + len(message.tool_calls))
        for text in message.texts():
            tokens += _bytes(text)
    return [tokens]


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of(event_log: EventLog, last: protocol.Final | None = None) -> tuple[int, int]:
    """Return the tokens of the prompt and those sampled; before the end those handed over.

    last: the last event of the job's worker, if it is another than the log's.
    """
    last = last or event_log.final
    if isinstance(last, (protocol.TextDone, protocol.Cancelled)) and last.prompt_tokens:
        return last.prompt_tokens, last.completion_tokens
    if isinstance(last, protocol.EmbeddingDone):
        return last.prompt_tokens, 0
    return _handed_over(event_log)


def _handed_over(event_log: EventLog) -> tuple[int, int]:
    """Return the tokens of the prompt and those sampled, as far as events have told."""
    work, events = event_log.job.work, event_log.events
    choices = work.choices if isinstance(work, protocol.TextJob) else 0
    sampled: dict[int, int] = {}
    for each in reversed(events):
        if len(sampled) == choices:
            break
        if isinstance(each, protocol.TextDelta):
            sampled.setdefault(each.choice, each.index + 1)
    started = next((each for each in events if isinstance(each, protocol.Started)), None)
    return started.prompt_tokens if started else 0, sum(sampled.values())


def _spoken(events: Sequence[Event]) -> float:
    return sum(
        len(each.samples) / _SAMPLE_BYTES / each.sample_rate
        for each in events
        if isinstance(each, protocol.AudioDelta)
    )


def _transcribed(events: Sequence[Event]) -> float:
    ends = [each.segment.end for each in events if isinstance(each, protocol.SegmentDelta)]
    return max(ends, default=0.0)
