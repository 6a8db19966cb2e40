"""The transcription engine decodes windows of all requests, a token of each at a step."""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import torch

from workers.codes import Code
from workers.engines.activity import FirstUse
from workers.engines.base import Refused
from workers.engines.batch_limit import BatchLimit
from workers.engines.defaults import TRANSCRIPTION_BATCH
from workers.engines.job_table import JobTable
from workers.engines.torch_env import (
    dtype_name,
    held_bytes,
    is_out_of_memory,
    load_failed,
    loading,
    must_end,
    release_cached,
)
from workers.engines.transcription.decoding import Attempt, DecodeBatch
from workers.engines.transcription.loading import LoadedWhisper, load
from workers.engines.transcription.preprocess import Decoding, Preprocessor
from workers.engines.transcription.request import Request
from workers.engines.transcription.segments import SegmentBuilder
from workers.engines.weight_progress import weights_read
from workers.protocol import (
    Cancelled,
    Event,
    Failed,
    Load,
    Ready,
    Segment,
    TranscriptionJob,
)

_MAX_BATCHES = 2  #: more would be smaller, and each costs a pass through the weights
_STEP_TIMEOUT = {"cpu": 300.0, "cuda": 60.0}  #: seconds that one step may take
_POLL_SECONDS = 0.05  #: longest wait for a file to be decoded in a step


class TranscriptionEngine:
    """Runs transcription jobs of one Whisper; see ``workers.engines.base``.

    A file's windows come one after another, since each begins where the one before it ended.
    Windows of several files that wait together are encoded and decoded together.
    """

    _loaded: LoadedWhisper
    _preprocessor: Preprocessor
    _segment_builder: SegmentBuilder

    def __init__(self) -> None:
        self._batch = BatchLimit(TRANSCRIPTION_BATCH)
        self._first_use = FirstUse()
        self._decoding: JobTable[Decoding] = JobTable()
        self._requests: JobTable[Request] = JobTable()
        self._waiting: list[Request] = []
        self._batches: list[DecodeBatch] = []

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        slots = spec.max_batch or TRANSCRIPTION_BATCH
        self._batch = BatchLimit(slots)
        if spec.warmup:
            raise load_failed("warmup is for models of text and images; this is none.")
        progress(0.0)
        with loading(spec), weights_read(Path(spec.path), progress):
            self._loaded = load(spec)
        self._segment_builder = SegmentBuilder(self._loaded)
        self._preprocessor = Preprocessor(self._loaded)
        progress(1.0)
        return Ready(
            slots=slots,
            dtype=dtype_name(self._loaded.dtype),
            device=spec.device,
            step_timeout=_STEP_TIMEOUT[spec.device],
        )

    def prepare(self, job: TranscriptionJob) -> Decoding:
        return self._preprocessor.prepare(job)

    def submit(self, prepared: Decoding) -> None:
        self._decoding[prepared.job.id] = prepared

    def cancel(self, job_id: str) -> None:
        self._decoding.cancel(job_id)
        self._requests.cancel(job_id)

    # ---- one step --------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Decode a token of one batch; batches take turns. A new batch is encoded first."""
        events = self._decoding.end_cancelled(self._cancel_decoding)
        events += self._requests.end_cancelled(self._end_cancelled)
        events += self._take_decoded()
        if self._waiting and len(self._batches) < _MAX_BATCHES:
            events += self._begin()
        elif self._batches:
            events += self._advance(self._batches.pop(0))
        return events

    def _take_decoded(self) -> list[Event]:
        """Take files that are decoded; returns the final events of those that cannot be.

        It waits a little if there is nothing else to do.
        """
        futures = [each.recording for each in self._decoding.values()]
        if futures and not self._waiting and not self._batches:
            wait(futures, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        events: list[Event] = []
        for each in [each for each in self._decoding.values() if each.recording.done()]:
            del self._decoding[each.job.id]
            try:
                request = each.result()
            except Refused as refused:
                events.append(refused.final(each.job.id))
            except Exception as error:
                if must_end(error, "cpu"):  # where files are read
                    raise
                no_memory = is_out_of_memory(error)
                code: Code = "OUT_OF_MEMORY" if no_memory else "INFERENCE_FAILED"
                message = "The sound file could not be read."
                events.append(Failed(id=each.job.id, code=code, message=message))
            else:
                self._requests[each.job.id] = request
                self._waiting.append(request)
        return events

    def _begin(self) -> list[Event]:
        """Begin a batch with the file that waits longest, and with others of its key."""
        first = self._waiting[0]
        group = [each for each in self._waiting if _batch_key(each) == _batch_key(first)]
        group = group[: self._batch.now]
        self._waiting = [each for each in self._waiting if each not in group]
        events: list[Event] = [event for each in group for event in each.start()]
        error: Exception | None = None
        try:
            with self._first_use.of():
                self._encode([each for each in group if each.encoded is None])
            encoded = torch.stack([each.encoded for each in group if each.encoded is not None])
            attempts = [each.next_attempt(self._loaded.decoding) for each in group]
            self._batches.append(DecodeBatch(self._loaded, encoded, attempts))
        except Exception as caught:  # noqa: BLE001  whatever a model raises ends its jobs only
            error = caught.with_traceback(None)  # it holds on to all that was computed
        return [*events, *self._handle_error(group, error)] if error else events

    def _encode(self, group: list[Request]) -> None:
        """Encode the windows of these requests, and detect the languages that are not given."""
        if not group:
            return
        model, decoding = self._loaded.model, self._loaded.decoding
        windows = [each.recording.window(each.seek, decoding.window) for each in group]
        features = torch.stack(windows).to(self._loaded.device, self._loaded.dtype)
        encoded = model.model.encoder(features).last_hidden_state
        for request, found in zip(group, encoded, strict=True):
            if request.language is None:
                request.language = self._language(found)
            if request.job.voice_activity:
                request.activity = request.recording.activity(request.seek, decoding.window)
            # Last: what is encoded is not encoded again if memory runs out on the way here.
            request.encoded = found

    def _language(self, encoded: torch.Tensor) -> str:
        """Return the language whose token is the likeliest after a transcript's start."""
        decoding = self._loaded.decoding
        start = torch.tensor([[decoding.start]], device=encoded.device)
        hidden = self._loaded.model.model.decoder(
            input_ids=start, encoder_hidden_states=encoded[None], use_cache=False
        ).last_hidden_state
        tokens = list(decoding.languages.values())
        scores = self._loaded.model.proj_out(hidden)[0, -1, tokens]
        return list(decoding.languages)[int(scores.argmax())]

    def _advance(self, running: DecodeBatch) -> list[Event]:
        attempts = list(running.attempts)
        events: list[Event] = []
        error: Exception | None = None
        try:
            with self._first_use.of():
                ended = running.step()
            for request in self._requests_of(ended):
                events += self._end_attempt(request)
        except Exception as caught:  # noqa: BLE001  whatever a model raises ends its jobs only
            error = caught.with_traceback(None)
        if error is not None:
            del running
            return [*events, *self._handle_error(self._requests_of(attempts), error)]
        if running.attempts:
            self._batches.append(running)
        else:
            self._first_use.done()
            self._batch.passed()
        return events

    def _end_attempt(self, request: Request) -> list[Event]:
        """Handle an ended attempt: retry at a higher temperature, or go on to the next window."""
        attempt, decoding = request.attempt, self._loaded.decoding
        assert attempt is not None
        if not math.isfinite(attempt.avg_logprob):
            return self._fail(request, "INFERENCE_FAILED", "The model's output is not a number.")
        vocabulary = self._loaded.model.config.vocab_size
        if request.retries(attempt, decoding, vocabulary):
            request.bad.append(attempt)
            request.attempt = None
            self._waiting.append(request)
            return []
        segments: list[Segment] = []
        advance = min(decoding.window, request.frames)
        chosen = request.choose(attempt, decoding, vocabulary)
        if chosen is not None:
            segments, advance = self._segment_builder.build(request, chosen, advance)
        request.advance(advance)
        events: list[Event] = list(request.add(segments))
        if not request.ended:
            self._waiting.append(request)
            return events
        del self._requests[request.job.id]
        return [*events, request.done()]

    def _requests_of(self, attempts: Iterable[Attempt]) -> list[Request]:
        """Return the requests of these attempts that have not ended."""
        wanted = {id(attempt) for attempt in attempts}
        return [each for each in self._requests.values() if id(each.attempt) in wanted]

    # ---- errors ----------------------------------------------------------------------------------

    def _handle_error(self, requests: list[Request], error: Exception) -> list[Event]:
        """Repeat in smaller batches if memory ran out; any other error ends these jobs."""
        code: Code = "INFERENCE_FAILED"
        message = f"The model failed on this file ({type(error).__name__})."
        if is_out_of_memory(error):
            release_cached(self._loaded.device)
            if len(requests) > 1:
                self._batch.halve(len(requests))
                for request in requests:
                    request.undo_attempt()
                self._waiting = requests + self._waiting
                return []
            code, message = "OUT_OF_MEMORY", "The device ran out of memory on this file."
        elif must_end(error, self._loaded.device):
            raise error
        return [event for each in requests for event in self._fail(each, code, message)]

    def _fail(self, request: Request, code: Code, message: str) -> list[Event]:
        self._forget(request)
        return [request.failed(code, message)]

    def _cancel_decoding(self, decoding: Decoding) -> Event:
        del self._decoding[decoding.job.id]
        decoding.abort()
        return Cancelled(id=decoding.job.id)

    def _end_cancelled(self, request: Request) -> Event:
        self._forget(request)
        return request.cancelled()

    def _forget(self, request: Request) -> None:
        del self._requests[request.job.id]
        self._waiting = [each for each in self._waiting if each is not request]
        for running in self._batches:
            if request.attempt in running.attempts:
                running.remove(request.attempt)
        self._batches = [each for each in self._batches if each.attempts]

    # ---- resources -------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._decoding) + len(self._requests)

    def device_bytes(self) -> int | None:
        return held_bytes(self._loaded.device)

    def books(self) -> dict[str, int]:
        return {
            "decoding": len(self._decoding),
            "requests": len(self._requests),
            "waiting": len(self._waiting),
            "rows": sum(len(each.attempts) for each in self._batches),
        }

    def close(self) -> None:
        for decoding in self._decoding.values():
            decoding.abort()
        self._decoding.clear()
        for request in list(self._requests.values()):
            self._forget(request)
        self._preprocessor.close()


def _batch_key(request: Request) -> tuple[int, bool]:
    """Return the key that all files of one batch share."""
    return len(request.prompt), request.timestamps
