"""The image engine: several calls of one diffusers pipeline, a step of one of them at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch

from workers.codes import Code
from workers.engines.base import Refused
from workers.engines.defaults import IMAGE_BATCH
from workers.engines.image.acceleration import speed_up
from workers.engines.image.encoding import describe, write
from workers.engines.image.loading import load
from workers.engines.image.loras import Loras
from workers.engines.image.memory import OomFallbacks, StoredDtypes, place
from workers.engines.image.pipeline_call import Images, PipelineCall, Step
from workers.engines.image.pipelines import Pipelines
from workers.engines.image.preprocess import Preprocessor
from workers.engines.image.preview import preview, why_no_preview
from workers.engines.image.request import ImageSample, Request
from workers.engines.job_table import JobTable
from workers.engines.torch_env import (
    finish_load,
    held_bytes,
    is_out_of_memory,
    out_of_memory,
    release_cached,
)
from workers.protocol import (
    Event,
    ImageFile,
    ImageJob,
    ImageOptions,
    Load,
    Ready,
)

_MOST_RUNS = 4
_WRITERS = 2
_WAIT_SECONDS = 0.02
_STEP_TIMEOUT = {"cpu": 600.0, "cuda": 120.0}  #: seconds that one step, or the decoder, may take
_COMPILER_PATIENCE = 600.0  #: where a size that was not warmed up may compile in a step


class ImageEngine:
    """Runs image jobs of one model; see ``workers.engines.base``.

    Drawings of the same shape that wait together go into one run. Runs take turns by the time
    that each has had, so a job of 4 steps is not held up by one of 50.
    """

    _pipelines: Pipelines
    _intake: Preprocessor
    _ladder: OomFallbacks
    _adapters: Loras
    _dtypes: StoredDtypes

    def __init__(self) -> None:
        self._model = ""
        self._batch = IMAGE_BATCH
        self._requests: JobTable[Request] = JobTable()
        self._waiting: list[ImageSample] = []
        self._runs: list[PipelineCall] = []
        self._writing: dict[Future[ImageFile], ImageSample] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="encode")
        self._most_runs = _MOST_RUNS
        self._no_preview: str | None = None  #: why there are none

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        # For good, and not around each call: calls take turns on this thread.
        torch.set_grad_enabled(False)
        self._model = spec.model
        self._batch = spec.max_batch or IMAGE_BATCH
        options = spec.image or ImageOptions()
        progress(0.0)
        try:
            loaded = load(spec, lambda part: progress(0.8 * part))
            self._adapters = Loras(loaded.pipe, options.loras)
            place(loaded, options.offload)
            speed_up(loaded.pipe, options, self._batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory() from error
        self._pipelines = Pipelines(loaded)
        self._intake = Preprocessor(self._pipelines)
        self._ladder = OomFallbacks(loaded.pipe, self._batch)
        self._dtypes = StoredDtypes(loaded.pipe)
        # Cached steps, and what lies where, are state of the weights that all runs share.
        alone = options.step_cache != "none" or options.offload != "none"
        self._most_runs = 1 if alone else _MOST_RUNS
        self._no_preview = why_no_preview(loaded.pipe, options.offload)
        finish_load(loaded.device)
        progress(1.0)
        step_timeout = _STEP_TIMEOUT[spec.device]
        return Ready(
            slots=self._batch,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=spec.device,
            step_timeout=max(step_timeout, _COMPILER_PATIENCE) if options.compile else step_timeout,
        )

    def prepare(self, job: ImageJob) -> Request:
        if job.preview_every and self._no_preview is not None:
            raise Refused("UNSUPPORTED_PARAMETER", self._no_preview, param="preview")
        self._adapters.check(job)
        return self._intake.prepare(job)

    def submit(self, prepared: Request) -> None:
        self._requests[prepared.job.id] = prepared
        self._waiting += prepared.samples

    def cancel(self, job_id: str) -> None:
        self._requests.cancel(job_id)

    # ---- one step --------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        events = self._requests.end_cancelled(self._end_cancelled)
        events += self._start()
        if self._runs:
            events += self._advance(min(self._runs, key=lambda run: run.spent))
        elif self._writing and not events:
            wait(self._writing, _WAIT_SECONDS)
        return events + self._collect()

    def _start(self) -> list[Event]:
        """Begin a run with what waits longest, and with what else is like it."""
        events: list[Event] = []
        while self._waiting and len(self._runs) < self._most_runs:
            first = self._waiting[0].request
            most = 1 if first.sources else self._ladder.batch.now
            samples = [each for each in self._waiting if each.request.shape == first.shape][:most]
            self._waiting = [each for each in self._waiting if each not in samples]
            events += self._begin(samples)
        return events

    def _begin(self, samples: list[ImageSample]) -> list[Event]:
        try:
            pipe, arguments = self._pipelines.prepare(samples)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return self._fail(samples, error)
        run = PipelineCall(pipe, arguments, samples)
        run.spent = min((each.spent for each in self._runs), default=0.0)
        self._runs.append(run)
        for request in _requests_of(samples):
            request.note_memory_fallbacks(self._ladder.taken)
        return [event for each in samples for event in each.request.started()]

    def _advance(self, run: PipelineCall) -> list[Event]:
        error: Exception | None = None
        try:
            self._adapters.activate(run.job.adapters)
            outcome = run.advance()
        except Exception as caught:  # noqa: BLE001  whatever a pipeline raises ends its jobs only
            error = caught.with_traceback(None)  # it holds on to all that the call had computed
        if error is not None:
            self._runs.remove(run)
            return self._failed(run, error)
        if isinstance(outcome, Step):
            return self._report(run, outcome)
        self._runs.remove(run)
        self._ladder.passed()
        return self._finish(run, outcome)

    def _report(self, run: PipelineCall, step: Step) -> list[Event]:
        events: list[Event] = []
        for request in _requests_of(run.samples):
            events += request.advanced(step.steps, self._preview(run, step, request))
        return events

    def _preview(self, run: PipelineCall, step: Step, request: Request) -> bytes:
        """Return a preview of the job's first image if one is due at this step, else nothing."""
        job, first = request.job, request.samples[0]
        due = job.preview_every and step.number % job.preview_every == 0
        if not due or step.number >= step.steps or first not in run.samples:
            return b""
        row = run.samples.index(first)
        try:
            return preview(run.pipe, step.latents[row : row + 1], job.width, job.height)
        except RuntimeError as error:
            if self._is_poisoned_by(error) and not is_out_of_memory(error):
                raise
            return b""  # the image itself may still come

    def _finish(self, run: PipelineCall, images: Images) -> list[Event]:
        events: list[Event] = []
        for sample, pixels, filtered in zip(
            run.samples, images.pixels, images.filtered, strict=True
        ):
            if not sample.wanted:
                continue
            if not np.isfinite(pixels).all():
                events += self._end(sample.request, "INFERENCE_FAILED", _NOT_A_NUMBER)
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

    def _collect(self) -> list[Event]:
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
            sample.picture = future.result()
            if request.whole:
                del self._requests[request.job.id]
                job = request.job
                events.append(request.drawn(self._scheduler(job), self._pipelines.guidance(job)))
        return events

    def _scheduler(self, job: ImageJob) -> str:
        return job.scheduler or self._pipelines.schedulers.own_name

    # ---- what goes wrong -------------------------------------------------------------------------

    def _failed(self, run: PipelineCall, error: Exception) -> list[Event]:
        wanted = [sample for sample in run.samples if sample.wanted]
        if is_out_of_memory(error):
            self._pipelines.prompts.clear()
            release_cached(self._pipelines.device)
            self._dtypes.restore()
            return self._again(wanted)
        if self._is_poisoned_by(error):
            raise error
        self._dtypes.restore()
        return self._fail(wanted, error)

    def _is_poisoned_by(self, error: Exception) -> bool:
        """True if the error may have damaged a CUDA context: going on would then give garbage."""
        return self._pipelines.device.type == "cuda" and isinstance(error, RuntimeError)

    def _fail(self, samples: list[ImageSample], error: Exception) -> list[Event]:
        message = f"The pipeline failed on this request ({type(error).__name__})."
        return [
            event
            for request in _requests_of(samples)
            for event in self._end(request, "INFERENCE_FAILED", message)
        ]

    def _again(self, wanted: list[ImageSample]) -> list[Event]:
        """Out of memory: climb down the ladder, and draw the same again from the start."""
        measure = self._ladder.climb(len(wanted))
        if measure is None:
            message = "The device ran out of memory on this request."
            return [
                event
                for request in _requests_of(wanted)
                for event in self._end(request, "OUT_OF_MEMORY", message)
            ]
        for sample in wanted:
            sample.step = 0
            sample.request.note_memory_fallbacks((measure,))
        self._waiting = wanted + self._waiting
        return []

    def _end(self, request: Request, code: Code, message: str) -> list[Event]:
        """Fail a request, once, and forget what is still to be drawn for it."""
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
        for run in [each for each in self._runs if not each.wanted]:
            self._runs.remove(run)
            run.end()

    # ---- what is held ----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def device_bytes(self) -> int | None:
        return held_bytes(self._pipelines.device)

    def books(self) -> dict[str, int]:
        return {
            "waiting": len(self._waiting),
            "runs": len(self._runs),
            "writing": sum(sample.wanted for sample in self._writing.values()),
        }

    def close(self) -> None:
        for run in self._runs:
            run.end()
        self._writers.shutdown(wait=True)
        self._requests.clear()


_NOT_A_NUMBER = "The model's output is not a number."


def _requests_of(samples: list[ImageSample]) -> list[Request]:
    """Return the requests of these samples that have not ended, each once."""
    found: dict[int, Any] = {id(each.request): each.request for each in samples if each.wanted}
    return list(found.values())
