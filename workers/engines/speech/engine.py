"""The speech engine computes sentences of all requests together, and joins each request's."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workers.codes import Code
from workers.engines.activity import FirstUse
from workers.engines.base import Refused
from workers.engines.batch_limit import BatchLimit
from workers.engines.job_table import JobTable
from workers.engines.speech.encoding import AudioFile, Resampler, choose_rate
from workers.engines.speech.joining import Joiner, pcm16, pieces
from workers.engines.speech.loading import load
from workers.engines.speech.model import SpeechModel, Utterance
from workers.engines.speech.sentences import split_sentences
from workers.engines.speech.stretching import Stretcher
from workers.engines.torch_env import (
    dtype_name,
    held_bytes,
    is_out_of_memory,
    load_failed,
    loading,
    must_end,
    release_cached,
)
from workers.engines.weight_progress import weights_read
from workers.protocol import (
    AudioDelta,
    Cancelled,
    Event,
    Failed,
    Load,
    Progress,
    Ready,
    SpeechDone,
    SpeechJob,
    Started,
)

_STEP_TIMEOUT = {"cpu": 300.0, "cuda": 60.0}  #: seconds that one step may take
_ALL = 1 << 20  #: sentences of a step: no limit until memory runs out
_CAUTIOUS_STEPS = 512  #: most steps are a token of each sentence
_NOT_A_NUMBER = "The model's output is not a number."


@dataclass(slots=True, eq=False)
class _Request:
    """Holds the state of a job between its submission and its final event."""

    job: SpeechJob
    voice: str | None
    waiting: list[Utterance]
    sentences: int
    joiner: Joiner
    stretcher: Stretcher
    resampler: Resampler
    sample_rate: int  #: of the audio that the client gets
    file: AudioFile | None = None
    running: list[Utterance] = field(default_factory=list)
    done: int = 0  #: sentences whose audio is written
    chunks: int = 0
    samples: int = 0
    has_started: bool = False
    served_at: int = 0  #: the step at which it came, or a sentence of it was done


class SpeechEngine:
    """Runs speech jobs of one model; see ``workers.engines.base``.

    A request's first sentence runs alone, so that its audio comes as soon as it can; the others
    follow together. Audio is sent in the order of the text.
    """

    _model: SpeechModel
    _device: str

    def __init__(self) -> None:
        self._requests: JobTable[_Request] = JobTable()
        self._steps = 0
        self._first_use = FirstUse()
        self._batch = BatchLimit(_ALL, _CAUTIOUS_STEPS)

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        self._device = spec.device
        if spec.warmup:
            raise load_failed("warmup is for models of text and images; this is none.")
        progress(0.0)
        with loading(spec), weights_read(Path(spec.path), progress):
            self._model, slots = load(spec)
        progress(1.0)
        return Ready(
            slots=slots,
            dtype=dtype_name(self._model.dtype),
            device=spec.device,
            step_timeout=_STEP_TIMEOUT[spec.device],
        )

    def prepare(self, job: SpeechJob) -> _Request:
        voice = self._model.resolve_voice(job)
        own = self._model.sample_rate
        sample_rate = choose_rate(job, own)
        pieces = split_sentences(job.text, self._model.fits)
        if not pieces:
            raise Refused("INVALID_REQUEST", "There is nothing to say.", param="text")
        utterances = [
            self._model.start(piece, voice, job.speed, job.seed + number)
            for number, piece in enumerate(pieces)
        ]
        return _Request(
            job,
            voice,
            utterances,
            len(utterances),
            Joiner(own),
            Stretcher(own, 1.0 if self._model.has_speed else job.speed or 1.0),
            Resampler(own, sample_rate),
            sample_rate,
        )

    def submit(self, prepared: _Request) -> None:
        prepared.served_at = self._steps
        self._requests[prepared.job.id] = prepared

    def cancel(self, job_id: str) -> None:
        self._requests.cancel(job_id)

    def step(self) -> list[Event]:
        events = self._requests.end_cancelled(self._end_cancelled)
        self._steps += 1
        for request in self._requests.values():
            events += self._begin(request)
        # Served longest ago comes first, for models that speak one sentence at a time.
        in_turn = sorted(self._requests.values(), key=lambda request: request.served_at)
        running = [each for request in in_turn for each in request.running]
        busy = [each for each in running if each.samples is None]
        if busy:
            events += self._compute(self._within_limit(busy))
        for request in list(self._requests.values()):
            events += self._collect(request)
        return events

    def _within_limit(self, busy: list[Utterance]) -> list[Utterance]:
        """Return as many as fit into memory together; those that hold resources come first."""
        if len(busy) <= self._batch.now:
            return busy
        return sorted(busy, key=lambda utterance: not utterance.is_held)[: self._batch.now]

    def _compute(self, batch: list[Utterance]) -> list[Event]:
        """Step some utterances; returns the final events of requests that cannot go on."""
        error: Exception | None = None
        try:
            with self._first_use.of():
                self._model.step(batch)
        except Exception as caught:  # noqa: BLE001  whatever a model raises ends its jobs only
            error = caught.with_traceback(None)  # it holds on to all that was computed
        if error is not None:
            return self._handle_error(batch, error)
        self._batch.passed()
        return []

    def _handle_error(self, batch: list[Utterance], error: Exception) -> list[Event]:
        """Repeat with fewer sentences if memory ran out; any other error ends their requests."""
        code: Code = "INFERENCE_FAILED"
        message = f"The model failed on this request ({type(error).__name__})."
        if is_out_of_memory(error):
            release_cached(self._device)
            if len(batch) > 1:
                self._batch.halve(len(batch))
                return []
            code, message = "OUT_OF_MEMORY", "The device ran out of memory on this request."
        elif must_end(error, self._device):
            raise error
        ended = [
            request
            for request in self._requests.values()
            if any(utterance in batch for utterance in request.running)
        ]
        return [self._end(request, code, message) for request in ended]

    def _begin(self, request: _Request) -> list[Event]:
        """Let a request's next sentences run: the first by itself, then all others."""
        started: list[Event] = []
        if not request.has_started:
            request.has_started = True
            started.append(Started(id=request.job.id))
        if not request.running and not request.done:
            request.running.append(request.waiting.pop(0))
        elif request.done and request.waiting:
            request.running += request.waiting
            request.waiting.clear()
        return started

    def _collect(self, request: _Request) -> list[Event]:
        """Write the audio of the sentences that are done, in the order of the text."""
        events: list[Event] = []
        try:
            while request.running and (samples := request.running[0].samples) is not None:
                if not np.isfinite(samples).all():
                    return [*events, self._end(request, "INFERENCE_FAILED", _NOT_A_NUMBER)]
                request.running.pop(0)
                events += self._add(request, samples)
            if not request.running and not request.waiting:
                events += self._finish(request)
        except OSError:
            return [*events, self._end(request, "DISK_FULL", "The audio could not be written.")]
        return events

    def _end(self, request: _Request, code: Code, message: str) -> Failed:
        """Forget a request; returns its final event."""
        self._forget(request)
        return Failed(id=request.job.id, code=code, message=message)

    def _add(self, request: _Request, samples: Any) -> list[Event]:
        """Add a sentence to a request; returns the audio that is playable now, and its progress."""
        request.done += 1
        request.served_at = self._steps
        ready = request.stretcher.push(request.joiner.push(samples))
        ready = request.resampler.push(ready)
        events = self._write(request, ready)
        if request.job.stream:
            step, steps = request.done, request.sentences
            events.append(Progress(id=request.job.id, step=step, steps=steps))
        return events

    def _write(self, request: _Request, samples: Any) -> list[Event]:
        if request.file is None:
            request.file = AudioFile(request.job, request.sample_rate)
        request.file.write(samples)
        request.samples += len(samples)
        if not request.job.stream or not len(samples):
            return []
        first = request.chunks
        told = [
            AudioDelta(
                id=request.job.id,
                index=first + number,
                samples=piece,
                sample_rate=request.sample_rate,
            )
            for number, piece in enumerate(pieces(pcm16(samples)))
        ]
        request.chunks += len(told)
        return [*told]

    def _finish(self, request: _Request) -> list[Event]:
        job = request.job
        last = request.stretcher.finish(request.joiner.finish())
        told = self._write(request, request.resampler.finish(last))
        assert request.file is not None
        size = request.file.finish()
        del self._requests[job.id]
        self._first_use.done()
        done = SpeechDone(
            id=job.id,
            format=job.format,
            bytes=size,
            sample_rate=request.sample_rate,
            duration=request.samples / request.sample_rate,
            sentences=request.sentences,
            voice=request.voice,
        )
        return [*told, done]

    def _end_cancelled(self, request: _Request) -> Event:
        self._forget(request)
        return Cancelled(id=request.job.id, steps=request.done)

    def _forget(self, request: _Request) -> None:
        for utterance in request.running:
            self._model.release(utterance)
        if request.file is not None:
            request.file.discard()
        del self._requests[request.job.id]

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def device_bytes(self) -> int | None:
        return held_bytes(self._device)

    def books(self) -> dict[str, int]:
        return {"requests": len(self._requests), "rows": self._model.rows_used}

    def close(self) -> None:
        for request in list(self._requests.values()):
            self._forget(request)
