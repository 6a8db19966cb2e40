"""The fake engine has no model: it answers with the prompt's words, one a token.

It runs through the very same loop, process and protocol as the others; the scheduler is tested
with it, and it is a demo that needs no weights. With ``faults`` prompts make it fail.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from workers.context_length import context_length_error
from workers.engines.base import Refused, counted
from workers.engines.job_table import JobTable
from workers.engines.stop_strings import StopFinder
from workers.faults import classify
from workers.protocol import (
    Cancelled,
    Event,
    Failed,
    FakeOptions,
    Load,
    Ready,
    Started,
    TextChoice,
    TextDelta,
    TextDone,
    TextJob,
)

MAX_CONTEXT = 8192
_SLOW_SECONDS = 1.0
_GARBAGE = msgspec.Raw(b"\xc1")  #: a byte that msgpack never uses: the frame will not decode
_FAULTS = ("!crash", "!hang", "!oom", "!raise", "!slow", "!garbage")


@dataclass(slots=True)
class _Request:
    job: TextJob
    words: list[str]
    max_tokens: int
    seconds_per_token: float
    fault: str | None
    stops: StopFinder
    due: float = 0.0
    started: bool = False
    text: str = ""  #: sent so far
    produced: int = 0


class FakeEngine:
    """Runs text jobs without a model; see ``workers.engines.base``."""

    def __init__(self) -> None:
        self._options = FakeOptions()
        self._max_context = MAX_CONTEXT
        self._running: JobTable[_Request] = JobTable()

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        self._options = spec.fake or FakeOptions()
        self._max_context = spec.max_context or MAX_CONTEXT
        steps = 10
        if self._options.load_fault is not None and self._options.faults:
            _fail_to_load(self._options.load_fault, progress)
        for step in range(steps):
            time.sleep(self._options.load_seconds / steps)
            progress((step + 1) / steps)
        return Ready(
            slots=spec.max_batch or self._options.batch_size,
            max_context=self._max_context,
            device=spec.device,
            has_chat_template=True,
        )

    def prepare(self, job: TextJob) -> _Request:
        _refuse_what_needs_a_model(job)
        text = job.prompt if job.messages is None else _last_user_text(job)
        words = (text or "").split()
        if job.count_only:
            raise counted(job, len(words))
        max_tokens = self._fit(job, len(words))
        fault = words[0] if self._options.faults and words and words[0] in _FAULTS else None
        if fault == "!oom":
            raise Refused("OUT_OF_MEMORY", "The device ran out of memory on this request.")
        rate = self._options.tokens_per_second
        pause = _SLOW_SECONDS if fault == "!slow" else 1 / rate if rate else 0.0
        return _Request(job, words, max_tokens, pause, fault, StopFinder(job.sampling.stop))

    def _fit(self, job: TextJob, prompt_tokens: int) -> int:
        """Return how many tokens to make, cut to the context if the client left it open."""
        left = self._max_context - prompt_tokens
        wanted = job.sampling.max_tokens
        if wanted <= left:
            return wanted
        if job.clip_max_tokens and left > 0:
            return left
        message, details = context_length_error(
            self._max_context,
            prompt_tokens,
            max_tokens=None if job.clip_max_tokens else wanted,
        )
        param = "max_tokens" if left > 0 else "prompt" if job.messages is None else "messages"
        raise Refused("CONTEXT_LENGTH_EXCEEDED", message, param=param, details=details)

    def submit(self, prepared: _Request) -> None:
        self._running[prepared.job.id] = prepared
        prepared.due = time.monotonic()

    def cancel(self, job_id: str) -> None:
        self._running.cancel(job_id)

    def step(self) -> list[Event]:
        events = self._running.end_cancelled(self._end_cancelled)
        now = time.monotonic()
        for request in list(self._running.values()):
            if not request.started:
                request.started = True
                events.append(Started(id=request.job.id, prompt_tokens=len(request.words)))
                if request.fault == "!garbage":
                    return [_GARBAGE]  # type: ignore[list-item]
                if request.fault == "!raise":
                    events.append(self._raise(request))
                    continue
                _inject_fault(request.fault)
            if request.due <= now:
                events += self._advance(request)
        if not events:
            self._sleep_until_due()
        return events

    def _raise(self, request: _Request) -> Event:
        """Meet the error whose text is the prompt's rest, as the other engines do."""
        error = RuntimeError(" ".join(request.words[1:]))
        fault = classify(error)
        if fault is None or fault.ends:
            raise error
        del self._running[request.job.id]
        message = "The device ran out of memory on this request."
        return Failed(id=request.job.id, code="OUT_OF_MEMORY", message=message)

    def _end_cancelled(self, request: _Request) -> Event:
        del self._running[request.job.id]
        return Cancelled(
            id=request.job.id,
            prompt_tokens=len(request.words),
            completion_tokens=request.produced,
        )

    def _advance(self, request: _Request) -> list[Event]:
        """Make the next token; all of them at once for a fast request without a stream."""
        request.due += request.seconds_per_token
        events: list[Event] = []
        whole = not request.job.stream and not request.seconds_per_token
        for _ in range(request.max_tokens if whole else 1):
            text = _next(request)
            ends = request.stops.stopped or request.produced >= request.max_tokens
            if ends:
                text += request.stops.flush()
            request.text += text
            if text and request.job.stream:
                events.append(TextDelta(id=request.job.id, text=text, index=request.produced - 1))
            if ends:
                events.append(self._done(request))
                break
        return events

    def _done(self, request: _Request) -> TextDone:
        del self._running[request.job.id]
        return TextDone(
            id=request.job.id,
            choices=(
                TextChoice(
                    text=request.text,
                    finish_reason="stop" if request.stops.stopped else "length",
                    stop=request.stops.found,
                ),
            ),
            prompt_tokens=len(request.words),
            completion_tokens=request.produced,
        )

    def _sleep_until_due(self) -> None:
        """Pretend to compute; short enough to notice new jobs and cancels within a step."""
        due = min(request.due for request in self._running.values())
        time.sleep(min(0.02, max(0.0, due - time.monotonic())))

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def device_bytes(self) -> int | None:
        return self._options.memory_bytes

    def books(self) -> dict[str, int]:
        return {"rows": len(self._running)}

    def close(self) -> None:
        self._running.clear()


def _refuse_what_needs_a_model(job: TextJob) -> None:
    for name in ("logprobs", "logit_bias"):
        if getattr(job.sampling, name) not in (None, {}):
            raise Refused(
                "UNSUPPORTED_PARAMETER", f"'{name}' is not supported for this model.", param=name
            )


def _next(request: _Request) -> str:
    """Make one more word; returns the text that may be sent now."""
    words = request.words or ["..."]
    word = words[request.produced % len(words)]
    text = request.stops.push(f" {word}" if request.produced else word)
    request.produced += 1
    return text


def _last_user_text(job: TextJob) -> str:
    users = [message.content for message in job.messages or () if message.role == "user"]
    return users[-1] if users else ""


def _fail_to_load(fault: str, progress: Callable[[float], None]) -> NoReturn:
    match fault:
        case "crash":
            _crash()
        case "device":
            raise RuntimeError("No CUDA GPUs are available")
        case "hang":
            time.sleep(3600)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "oom":
            raise Refused("OUT_OF_MEMORY", "The device has not enough memory for this model.")
        case "garbage":
            progress(_GARBAGE)  # type: ignore[arg-type]
            time.sleep(3600)
    raise Refused("MODEL_LOAD_FAILED", "The fake engine was told not to load.")


def _crash() -> NoReturn:
    sys.stderr.write("the fake engine was told to crash\n")
    sys.stderr.flush()
    os._exit(13)


def _inject_fault(fault: str | None) -> None:
    match fault:
        case "!crash":
            _crash()
        case "!hang":
            time.sleep(3600)
        case _:
            pass
