"""The image engine interleaves calls of one diffusers pipeline, a step of one call at a time."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from workers.codes import Code
from workers.engines.activity import FirstUse, busy_with
from workers.engines.base import Refused
from workers.engines.defaults import IMAGE_BATCH
from workers.engines.image.acceleration import speed_up, trial
from workers.engines.image.compiler import missing_for_compile
from workers.engines.image.decoder import DecoderGuard, finite_rows
from workers.engines.image.encoding import describe, write
from workers.engines.image.loading import load
from workers.engines.image.loras import Loras
from workers.engines.image.memory import OomFallbacks, StoredDtypes, place
from workers.engines.image.pipeline_call import Images, PipelineCall, Step
from workers.engines.image.pipelines import Pipelines
from workers.engines.image.preprocess import Preprocessor
from workers.engines.image.preview import preview, preview_refusal
from workers.engines.image.request import ImageSample, Request
from workers.engines.job_table import JobTable
from workers.engines.numbers import check_numbers
from workers.engines.torch_env import (
    dtype_name,
    held_bytes,
    is_out_of_memory,
    load_failed,
    loading,
    must_end,
    release_cached,
    release_unused,
)
from workers.protocol import (
    Event,
    ImageFile,
    ImageJob,
    ImageOptions,
    Load,
    Ready,
)

log = logging.getLogger(__name__)

_MAX_CALLS = 4  #: calls that are interleaved
_WRITERS = 2
_POLL_SECONDS = 0.02
_STEP_TIMEOUT = {"cpu": 600.0, "cuda": 120.0}  #: seconds that one step, or the decoder, may take
_COMPILE_STEP_TIMEOUT = 600.0  #: the same, where a size that was not warmed up may be compiled


class ImageEngine:
    """Runs image jobs of one model; see ``workers.engines.base``.

    Images of the same shape that wait together go into one call. Calls take turns by the time
    that each has had, so a job of 4 steps is not held up by one of 50.
    """

    _pipelines: Pipelines
    _preprocessor: Preprocessor
    _fallbacks: OomFallbacks
    _loras: Loras
    _dtypes: StoredDtypes
    _decoder: DecoderGuard

    def __init__(self) -> None:
        self._model = ""
        self._dtype = ""
        self._batch = IMAGE_BATCH
        self._requests: JobTable[Request] = JobTable()
        self._waiting: list[ImageSample] = []
        self._calls: list[PipelineCall] = []
        self._writing: dict[Future[ImageFile], ImageSample] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="encode")
        self._max_calls = _MAX_CALLS
        self._first_use = FirstUse()
        self._size = (0, 0)  #: of the images of the last call
        self._no_preview: str | None = None  #: the reason for which previews are refused

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        self._model = spec.model
        self._batch = spec.max_batch or IMAGE_BATCH
        self._first_use = FirstUse("compile" if spec.image and spec.image.compile else "warmup")
        options = spec.image or ImageOptions()
        if options.compile and (missing := missing_for_compile(spec.device)):
            raise load_failed(missing)
        progress(0.0)
        with loading(spec, cudnn_attention=True):
            loaded = load(spec, lambda part: progress(0.8 * part))
            self._loras = Loras(loaded.pipe, options.loras, options.own_lora)
            place(loaded, options.offload)
            self._decoder = DecoderGuard(loaded.pipe, spec.model)
            speed_up(loaded.pipe, options, self._batch)
            check_numbers(loaded.dtype, lambda: trial(loaded.pipe))
        self._pipelines = Pipelines(loaded)
        self._preprocessor = Preprocessor(self._pipelines)
        self._fallbacks = OomFallbacks(loaded.pipe, self._batch)
        self._decoder.make_room = self._tile_decoder
        self._dtypes = StoredDtypes(loaded.pipe)
        # Cached steps and offloaded parts are state of the weights, which all calls share.
        alone = options.step_cache != "none" or options.offload != "none"
        self._max_calls = 1 if alone else _MAX_CALLS
        self._no_preview = preview_refusal(loaded.pipe, options.offload)
        if spec.warmup:
            self._warm_up(options)
        self._dtype = dtype_name(loaded.dtype)
        progress(1.0)
        step_timeout = _STEP_TIMEOUT[spec.device]
        return Ready(
            slots=self._batch,
            dtype=self._dtype,
            device=spec.device,
            step_timeout=_COMPILE_STEP_TIMEOUT if options.compile else step_timeout,
        )

    def _warm_up(self, options: ImageOptions) -> None:
        """Draw as many images of the usual size as one pass may have, so that the load tells what
        memory they take. Where it does not suffice, fallbacks find a way at the first request."""
        error: Exception | None = None
        try:
            with busy_with("warmup"):
                trial(
                    self._pipelines.base,
                    images=self._batch,
                    width=options.width,
                    height=options.height,
                )
        except Exception as caught:
            if not is_out_of_memory(caught):
                raise
            error = caught.with_traceback(None)  # it holds on to all that was computed
        if error is not None:
            release_cached(self._pipelines.device)
            self._dtypes.restore()
            log.warning(
                "%s: no memory for %d images of %d x %d at once",
                self._model,
                self._batch,
                options.width,
                options.height,
            )

    def prepare(self, job: ImageJob) -> Request:
        if job.preview_every and self._no_preview is not None:
            raise Refused("UNSUPPORTED_PARAMETER", self._no_preview, param="preview")
        self._loras.check(job)
        return self._preprocessor.prepare(job)

    def submit(self, prepared: Request) -> None:
        self._requests[prepared.job.id] = prepared
        self._waiting += prepared.samples

    def cancel(self, job_id: str) -> None:
        self._requests.cancel(job_id)

    # ---- one step --------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        events = self._requests.end_cancelled(self._end_cancelled)
        events += self._start()
        if self._calls:
            events += self._advance(min(self._calls, key=lambda call: call.seconds_per_image))
        elif self._writing and not events:
            wait(self._writing, _POLL_SECONDS)
        return events + self._end_written()

    def _start(self) -> list[Event]:
        """Start calls: each with the image that waits longest, and with others of its shape."""
        events: list[Event] = []
        while self._waiting and len(self._calls) < self._max_calls:
            first = self._waiting[0].request
            most = 1 if first.sources else self._fallbacks.batch.now
            alike = [each for each in self._waiting if each.request.batch_key == first.batch_key]
            samples = alike[:most]
            self._waiting = [each for each in self._waiting if each not in samples]
            events += self._call(samples)
        return events

    def _call(self, samples: list[ImageSample]) -> list[Event]:
        try:
            pipe, arguments = self._pipelines.prepare(samples)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return self._fail(samples, error)
        job = samples[0].request.job
        if (size := (job.width, job.height)) != self._size:  # pieces of other sizes are cached
            release_unused(self._pipelines.device)
            self._size = size
        call = PipelineCall(pipe, arguments, samples)
        call.seconds_per_image = min((c.seconds_per_image for c in self._calls), default=0.0)
        self._calls.append(call)
        for request in _requests_of(samples):
            request.note_memory_fallbacks(self._fallbacks.applied)
        return [event for each in samples for event in each.request.start()]

    def _advance(self, call: PipelineCall) -> list[Event]:
        error: Exception | None = None
        try:
            self._loras.activate(call.job.adapters)
            with self._first_use.of(self._new_to_kernels(call)):
                outcome = call.advance()
        except Exception as caught:  # noqa: BLE001  whatever a pipeline raises ends its jobs only
            error = caught.with_traceback(None)  # it holds on to all that the call had computed
        if error is not None:
            self._calls.remove(call)
            return self._handle_error(call, error)
        if isinstance(outcome, Step):
            return self._report(call, outcome)
        self._calls.remove(call)
        self._first_use.done(self._new_to_kernels(call))
        events = self._write(call, outcome)
        self._fallbacks.passed()
        return events

    def _new_to_kernels(self, call: PipelineCall) -> object:
        """Return what is compiled for: each shape; without a compiler one is as all others."""
        shape = (call.job.width, call.job.height, len(call.samples))
        return shape if self._first_use.activity == "compile" else None

    def _report(self, call: PipelineCall, step: Step) -> list[Event]:
        events = self._check_first(call, step) if step.number == 1 else []
        for request in _requests_of(call.samples):
            events += request.progress(step.steps, self._preview(call, step, request))
        return events

    def _check_first(self, call: PipelineCall, step: Step) -> list[Event]:
        """End the jobs whose latents are not finite: they would not become so in later steps."""
        if step.latents is None:
            return []
        whole: list[bool] = finite_rows(step.latents).tolist()
        return [
            event
            for sample, is_finite in zip(call.samples, whole, strict=True)
            if not is_finite
            for event in self._end_without_number(sample.request)
        ]

    def _end_without_number(self, request: Request, decoded_in: str = "") -> list[Event]:
        """Fail a job of whose model some output is no number, naming the part and its format."""
        part, dtype = ("decoder", decoded_in) if decoded_in else ("denoiser", self._dtype)
        message = f"The model's output is not a number: that of its {part}, in {dtype}."
        return self._end(request, "INFERENCE_FAILED", message)

    def _preview(self, call: PipelineCall, step: Step, request: Request) -> bytes:
        """Return a preview of the job's first image if one is due at this step, else nothing."""
        job, first = request.job, request.samples[0]
        due = job.preview_every and step.number % job.preview_every == 0
        if not due or step.number >= step.steps or first not in call.samples:
            return b""
        row = call.samples.index(first)
        try:
            with self._decoder.for_previews():
                return preview(call.pipe, step.latents[row : row + 1], job.width, job.height)
        except RuntimeError as error:
            if must_end(error, self._pipelines.device):
                raise
            return b""  # the image itself may still come

    def _write(self, call: PipelineCall, images: Images) -> list[Event]:
        """Begin to write a finished call's images; those that are not finite end their jobs."""
        events: list[Event] = []
        for request in _requests_of(call.samples):
            request.note_memory_fallbacks(self._fallbacks.applied)  # the decoder may have made room
        for sample, pixels, filtered in zip(
            call.samples, images.pixels, images.filtered, strict=True
        ):
            if not sample.wanted:
                continue
            if not np.isfinite(pixels).all():
                events += self._end_without_number(sample.request, self._decoder.failed_in)
                continue
            job = sample.request.job
            text = describe(
                job, self._model, sample.seed, self._scheduler(job), self._pipelines.guidance(job)
            )
            future = self._writers.submit(
                write, pixels, job, sample.index, filtered=filtered, description=text
            )
            self._writing[future] = sample
        return events

    def _end_written(self) -> list[Event]:
        """End the jobs whose images are all written."""
        events: list[Event] = []
        for future in [each for each in self._writing if each.done()]:
            sample = self._writing.pop(future)
            request = sample.request
            if not sample.wanted:
                continue
            if (error := future.exception()) is not None:
                code: Code = "DISK_FULL" if isinstance(error, OSError) else "INFERENCE_FAILED"
                events += self._end(request, code, "The image could not be written.")
                continue
            sample.image = future.result()
            if request.is_complete:
                job = request.job
                del self._requests[job.id]
                events.append(request.done(self._scheduler(job), self._pipelines.guidance(job)))
        return events

    def _scheduler(self, job: ImageJob) -> str:
        return job.scheduler or self._pipelines.schedulers.own_name

    # ---- errors ----------------------------------------------------------------------------------

    def _tile_decoder(self) -> bool:
        release_cached(self._pipelines.device)
        return self._fallbacks.tile_decoder()

    def _handle_error(self, call: PipelineCall, error: Exception) -> list[Event]:
        wanted = [sample for sample in call.samples if sample.wanted]
        if is_out_of_memory(error):
            self._pipelines.prompt_cache.clear()
            release_cached(self._pipelines.device)
            self._dtypes.restore()
            return self._retry_with_fallback(wanted)
        if must_end(error, self._pipelines.device):
            raise error
        self._dtypes.restore()
        return self._fail(wanted, error)

    def _fail(self, samples: list[ImageSample], error: Exception) -> list[Event]:
        message = f"The pipeline failed on this request ({type(error).__name__})."
        return [
            event
            for request in _requests_of(samples)
            for event in self._end(request, "INFERENCE_FAILED", message)
        ]

    def _retry_with_fallback(self, wanted: list[ImageSample]) -> list[Event]:
        """Apply the next memory fallback, and compute the same images from the start.

        Ends their jobs with OUT_OF_MEMORY if there is no other fallback.
        """
        fallback = self._fallbacks.next(len(wanted))
        if fallback is None:
            message = "The device ran out of memory on this request."
            return [
                event
                for request in _requests_of(wanted)
                for event in self._end(request, "OUT_OF_MEMORY", message)
            ]
        for sample in wanted:
            sample.step = 0
            sample.request.note_memory_fallbacks((fallback,))
        self._waiting = wanted + self._waiting
        return []

    def _end(self, request: Request, code: Code, message: str) -> list[Event]:
        """Fail a request, once, and forget the images that it still waits for."""
        if request.ended:
            return []
        failure = request.failed(code, message)
        self._forget(request)
        return [failure]

    def _end_cancelled(self, request: Request) -> Event:
        cancelled = request.cancelled()
        self._forget(request)  # after it has ended: then its samples are not wanted any more
        return cancelled

    def _forget(self, request: Request) -> None:
        del self._requests[request.job.id]
        self._waiting = [each for each in self._waiting if each.request is not request]
        for call in [each for each in self._calls if not each.wanted]:
            self._calls.remove(call)
            call.end()

    # ---- resources -------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def device_bytes(self) -> int | None:
        return held_bytes(self._pipelines.device)

    def books(self) -> dict[str, int]:
        return {
            "waiting": len(self._waiting),
            "calls": len(self._calls),
            "writing": sum(sample.wanted for sample in self._writing.values()),
        }

    def close(self) -> None:
        for call in self._calls:
            call.end()
        self._writers.shutdown(wait=True)
        self._requests.clear()


def _requests_of(samples: list[ImageSample]) -> list[Request]:
    """Return the requests of these samples that have not ended, each once."""
    found: dict[int, Any] = {id(each.request): each.request for each in samples if each.wanted}
    return list(found.values())
