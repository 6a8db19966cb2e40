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
_LATE_SECONDS = 0.25  #: by which tokens may be late and still come at their rate, all in all
_GARBAGE = msgspec.Raw(b"\xc1")  #: a byte that msgpack never uses: the frame will not decode
_FAULTS = ("!crash", "!hang", "!oom", "!raise", "!slow", "!garbage")


@dataclass(slots=True)
class _Text:
    """Holds one of the texts of a job."""

    words: list[str]
    max_tokens: int
    min_tokens: int
    stops: StopFinder
    echo: str = ""  #: to be sent before the first word
    text: str = ""  #: sent so far
    produced: int = 0
    ended: bool = False

    def make_all(self) -> None:
        """Make all words at once, where no stop string can end them."""
        words = self.words or ["..."]
        made = [words[number % len(words)] for number in range(self.max_tokens)]
        self.text, self.echo = self.echo + " ".join(made), ""
        self.produced, self.ended = self.max_tokens, True

    def next(self) -> str:
        """Make one more word; returns the text that may be sent now."""
        text, self.echo = self.echo, ""
        if self.max_tokens:
            words = self.words or ["..."]
            word = words[self.produced % len(words)]
            word = f" {word}" if self.produced else word
            self.produced += 1
            text += word if self.produced < self.min_tokens else self.stops.push(word)
        self.ended = self.stops.stopped or self.produced >= self.max_tokens
        if self.ended:
            text += self.stops.flush()
        self.text += text
        return text


@dataclass(slots=True)
class _Request:
    job: TextJob
    texts: list[_Text]
    prompt_tokens: int
    words: list[str]  #: of the first prompt
    seconds_per_token: float
    fault: str | None
    due: float = 0.0
    started: bool = False

    @property
    def produced(self) -> int:
        return sum(text.produced for text in self.texts)


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
        prompts = [_last_user_text(job)] if job.messages else _prompts(job)
        each_words = [prompt.split() for prompt in prompts]
        words = each_words[0]
        if job.count_only:
            raise counted(job, len(words))
        texts = [
            _Text(
                words,
                self._fit(job, len(words)),
                job.sampling.min_tokens,
                StopFinder(job.sampling.stop),
                echo=prompt if job.echo else "",
            )
            for prompt, words in zip(prompts, each_words, strict=True)
            for _ in range(job.best_of or job.n)
        ]
        fault = words[0] if self._options.faults and words and words[0] in _FAULTS else None
        if fault == "!oom":
            raise Refused("OUT_OF_MEMORY", "The device ran out of memory on this request.")
        rate = self._options.tokens_per_second
        pause = _SLOW_SECONDS if fault == "!slow" else 1 / rate if rate else 0.0
        return _Request(job, texts, sum(map(len, each_words)), words, pause, fault)

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
                events.append(Started(id=request.job.id, prompt_tokens=request.prompt_tokens))
                if request.fault == "!garbage":
                    return [_GARBAGE]  # type: ignore[list-item]  # what no event is
                if request.fault == "!raise":
                    events.append(self._raise(request))
                    continue
                _inject_fault(request.fault)
            if request.due <= now:
                events += self._advance(request, now)
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
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.produced,
        )

    def _advance(self, request: _Request, now: float) -> list[Event]:
        """Make each text's next token; all of them at once for a fast request without a stream.

        What a machine that stood still has missed is not made up for at once.
        """
        request.due = max(request.due, now - _LATE_SECONDS) + request.seconds_per_token
        job, events = request.job, list[Event]()
        streams = job.stream and (job.best_of or job.n) == job.n
        whole = not job.stream and not request.seconds_per_token
        for choice, made in enumerate(request.texts):
            if whole and not (made.ended or made.produced or job.sampling.stop):
                made.make_all()
            if made.ended:
                continue
            for _ in range(max(1, made.max_tokens) if whole else 1):
                text = made.next()
                if text and streams:
                    index = max(0, made.produced - 1)
                    events.append(TextDelta(id=job.id, text=text, index=index, choice=choice))
                if made.ended:
                    break
        if all(made.ended for made in request.texts):
            events.append(self._done(request))
        return events

    def _done(self, request: _Request) -> TextDone:
        del self._running[request.job.id]
        return TextDone(
            id=request.job.id,
            choices=tuple(
                TextChoice(
                    text=made.text,
                    finish_reason="stop" if made.stops.stopped else "length",
                    stop=made.stops.found,
                )
                for made in _told(request)
            ),
            prompt_tokens=request.prompt_tokens,
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
    if job.grammar is not None:
        raise Refused(
            "UNSUPPORTED_PARAMETER",
            f"'{job.grammar.param}' is not supported for this model.",
            param=job.grammar.param,
        )
    if job.tools and job.tool_choice != "auto":
        message = "This model cannot be made to call a tool: it repeats the prompt."
        raise Refused("UNSUPPORTED_PARAMETER", message, param="tool_choice")
    for name in ("logprobs", "logit_bias", "stop_token_ids"):
        if getattr(job.sampling, name) not in (None, {}, ()):
            raise Refused(
                "UNSUPPORTED_PARAMETER", f"'{name}' is not supported for this model.", param=name
            )


def _prompts(job: TextJob) -> list[str]:
    """Return the texts of the prompts. Raises Refused for tokens, since there is no tokenizer."""
    prompts = job.prompts or (job.prompt or "",)
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise Refused(
            "UNSUPPORTED_PARAMETER", "This model takes text, not token ids.", param="prompt"
        )
    return [str(prompt) for prompt in prompts]


def _told(request: _Request) -> list[_Text]:
    """Return the texts to tell: the first ones of each prompt, which are as good as the others."""
    of_each = request.job.best_of or request.job.n
    return [made for number, made in enumerate(request.texts) if number % of_each < request.job.n]


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
            progress(_GARBAGE)  # type: ignore[arg-type]  # what no number is
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
