"""Holds the names and values of OpenTelemetry's conventions for generative AI.

They are from open-telemetry/semantic-conventions-genai as it was in November 2026, where all still
have the status Development; the package of conventions marks its own copies as deprecated. Times
under ``gen_ai.latency`` are those that vLLM writes and tools read. What clients write (prompts,
stop strings, tools) and what models answer is left out, always.
"""

from typing import Final

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.usage import tokens_of
from workers import protocol

Value = str | bool | int | float | tuple[str, ...]
PROVIDER: Final = "bitinglip"


def request_attributes(event_log: EventLog) -> dict[str, Value]:
    """Describe what was asked for."""
    job, traits = event_log.job, event_log.job.traits
    found: dict[str, Value] = {
        "gen_ai.operation.name": traits.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": job.model,
        "gen_ai.request.id": job.id,
        "gen_ai.request.stream": job.stream,
    }
    if traits.makes is not None:
        found["gen_ai.output.type"] = traits.makes
    if traits.choices > 1:
        found["gen_ai.request.choice.count"] = traits.choices
    if isinstance(job.work, protocol.TextJob):
        found |= _sampling(job.work.sampling)
        if job.work.grammar is not None:
            found["gen_ai.output.type"] = "json"
    return found


def _sampling(sampling: protocol.Sampling) -> dict[str, Value]:
    values = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
    }
    return {f"gen_ai.request.{name}": each for name, each in values.items() if each is not None}


def response_attributes(event_log: EventLog) -> dict[str, Value]:
    """Describe what came of it, with how long it took; times in seconds."""
    final, job = event_log.final, event_log.job
    prompt_tokens, completion_tokens = tokens_of(event_log)
    found: dict[str, Value] = {
        "gen_ai.response.model": job.model,
        "gen_ai.response.id": job.id,
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": completion_tokens,
        "gen_ai.latency.time_in_queue": event_log.queue_time,
    }
    if event_log.ended is not None:
        found["gen_ai.latency.e2e"] = event_log.ended - event_log.submitted
    if event_log.first_token is not None:
        first = event_log.first_token - event_log.submitted
        found["gen_ai.latency.time_to_first_token"] = first
        found["gen_ai.response.time_to_first_chunk"] = first
    if isinstance(final, protocol.TextDone):
        found["gen_ai.response.finish_reasons"] = tuple(
            each.finish_reason for each in final.choices
        )
        found["gen_ai.usage.cache_read.input_tokens"] = final.cached_tokens
        found["gen_ai.usage.reasoning.output_tokens"] = final.reasoning_tokens
    elif isinstance(final, protocol.Failed):
        found["error.type"] = final.code
    elif isinstance(final, protocol.Cancelled):
        found["error.type"] = "cancelled"
    return found
