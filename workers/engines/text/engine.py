"""The text engine batches continuously over transformers' model classes, on CPU and CUDA."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from workers.engines import defaults, torch_env
from workers.engines.activity import busy_with
from workers.engines.base import Refused
from workers.engines.job_table import JobTable
from workers.engines.text import speculation
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.draw import UNDECIDED
from workers.engines.text.flight import NONE, Launcher
from workers.engines.text.generation import Generation
from workers.engines.text.grammar.compiler import Compiled
from workers.engines.text.grammar.grammars import Grammars
from workers.engines.text.loading import LoadedModel, load
from workers.engines.text.lora_queue import LoraQueue
from workers.engines.text.opening import LoadModel, OpenedModel, open_model
from workers.engines.text.pipeline import Pipeline
from workers.engines.text.plan import Chunk, Sequence
from workers.engines.text.preprocess import PreparedJob, Preprocessor
from workers.engines.text.request import Request
from workers.engines.text.runner import Runner
from workers.engines.text.sample import Choice
from workers.engines.text.sampler import Sampler
from workers.engines.text.scheduler import Scheduler
from workers.engines.text.scrubbing import Scrubber
from workers.engines.text.sequential import SequentialRunner
from workers.engines.text.warmup import WarmUp
from workers.engines.weight_progress import weights_read
from workers.protocol import Event, Load, Ready, TextJob

_BLOCK_SIZE = 16
_REST = 0.002  #: seconds


class TextEngine:
    """Runs text jobs of one model, all of them in each step; see ``workers.engines.base``."""

    _preprocessor: Preprocessor
    _runner: Runner | SequentialRunner
    _scheduler: Scheduler
    _allocator: BlockAllocator
    _detokenizers: DetokenizerFactory
    _grammars: Grammars
    _loaded: LoadedModel
    _pipeline: Pipeline
    _speculation: speculation.Speculation | None
    _loras: LoraQueue
    _scrubber: Scrubber

    def __init__(
        self,
        *,
        step_tokens: int | None = None,
        block_size: int = _BLOCK_SIZE,
        load_model: LoadModel = load,
    ) -> None:
        """``step_tokens`` limits a step over all rows; None takes the device's default."""
        self._load_model = load_model
        self._step_tokens = step_tokens
        self._block_size = block_size
        self._sampler = Sampler()
        self._requests: JobTable[Request] = JobTable()
        self._generations: dict[Sequence, Generation] = {}  #: those that go on, of all requests

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        progress(0.0)
        reading = weights_read(Path(spec.path), progress)
        with torch_env.loading(spec, "this model and its cache"), reading as weights:
            opened = open_model(spec, self._load_model, weights, self._block_size)
            self._set_up(opened)
        ready = opened.ready
        if spec.device == "cuda" if spec.warmup is None else spec.warmup:
            self._warm_up(ready)
        progress(1.0)
        return ready

    def _set_up(self, opened: OpenedModel) -> None:
        loaded = self._loaded = opened.loaded
        self._runner, self._allocator = opened.runner, opened.allocator
        self._preprocessor, self._grammars = opened.preprocessor, opened.grammars
        self._detokenizers, self._loras = opened.detokenizers, opened.loras
        self._speculation = opened.speculation
        self._scrubber = Scrubber(self._runner, self._allocator)
        tokens = self._step_tokens or defaults.TEXT_STEP_TOKENS[loaded.device.type]
        self._scheduler = Scheduler(
            self._allocator,
            max_rows=opened.ready.slots,
            step_tokens=tokens,
            inspect=self._scrubber.inspect,
        )
        self._pipeline = Pipeline(
            Launcher(self._runner, self._sampler, self._grammars.rows, self._generations),
            self._runner,
            self._scheduler,
            self._scrubber,
            device=loaded.device,
            overlaps=opened.overlaps,
            take=self._take,
            fail=self._fail,
        )

    def _warm_up(self, ready: Ready) -> None:
        """Compute the largest steps once: what memory they take is told with the load."""
        warmup = WarmUp(
            self,
            self._scheduler,
            context=ready.max_context or 1,
            vocab_size=self._loaded.vocab_size,
        )
        with busy_with("warmup"):
            warmup.run(ready.slots)
            self._grammars.compiler.warm_up()
            if ready.device == "cuda" and self._step_tokens is None:
                warmup.pace()

    def prepare(self, job: TextJob) -> PreparedJob:
        prepared = self._preprocessor.prepare(job)
        if job.lora is None:
            return prepared
        return replace(prepared, lora=self._loras.read(job.lora))

    def submit(self, prepared: PreparedJob) -> None:
        request = Request(
            prepared,
            self._detokenizers,
            eos_ids=self._loaded.eos_ids,
            vocab_size=self._loaded.vocab_size,
            block_size=self._block_size if self._runner.shares_blocks else None,
        )
        self._requests[prepared.job.id] = request
        if prepared.job.lora is None:
            self._enter(request)
        else:
            self._loras.add(request, prepared.job.lora, prepared.lora)

    def _enter(self, request: Request) -> None:
        """Let a request take part in the steps, once its grammar is there."""
        if request.grammar is None:
            self._admit(request, None)
        else:
            self._grammars.wait(request.job.id, request.grammar)

    def _enter_with_loras(self) -> list[Event]:
        """Let requests in whose LoRAs are there now; return the ends of those refused."""
        events: list[Event] = []
        for request, refused in self._loras.take():
            if refused is None:
                self._enter(request)
            else:
                self._forget(request)
                events.append(refused.final(request.job.id))
        return events

    def _admit(self, request: Request, grammar: Compiled | None) -> None:
        """Let a request take part in the steps."""
        for generation in request.generations:
            if grammar is not None:
                may_end = not request.job.sampling.ignore_eos
                constraint = self._grammars.constraint(grammar, may_end=may_end)
                generation.sampling.constrain(constraint)
                self._grammars.rows.add(generation.sequence, constraint)
            self._generations[generation.sequence] = generation
            self._scheduler.add(generation.sequence)

    def cancel(self, job_id: str) -> None:
        self._requests.cancel(job_id)

    def step(self) -> list[Event]:
        pipeline = self._pipeline
        events = pipeline.land() if self._requests.cancelling else []
        events += self._requests.end_cancelled(self._end_cancelled)
        if len(self._loras):
            events += self._enter_with_loras()
        if self._grammars.busy:
            events += self._go_on()
        if len(self._grammars.rows):  # their masks need the tokens
            events += pipeline.land()
        if self._speculation is not None:
            self._speculation.draft(self._generations.values())
        plan, landed = pipeline.plan()
        events += landed
        for sequence in plan.started:
            events += self._requests[sequence.id].begin()
        if plan.chunks:
            return events + pipeline.run(plan, overlaps=not self._grammars.rows)
        events += pipeline.land()
        if not events:
            time.sleep(_REST)  # all that is here waits for a grammar
        return events

    def _go_on(self) -> list[Event]:
        """Go on with what has waited for grammars: jobs, rows and finished texts."""
        events = self._grammars.checks.take()
        for job_id, grammar in self._grammars.take():
            if isinstance(grammar, Refused):
                self._forget(self._requests[job_id])
                events.append(grammar.final(job_id))
            else:
                self._admit(self._requests[job_id], grammar)
        for sequence, error in self._grammars.rows.ended():
            if sequence in self._generations:  # its request may have failed just now
                events += self._complete(sequence, error)
        return events

    def _complete(self, sequence: Sequence, error: str | None) -> list[Event]:
        """End a text that nothing may follow, or that its grammar can lead no further."""
        request = self._requests[sequence.id]
        if error is not None:
            self._forget(request)
            text = f"The text's grammar takes too much to be followed: {error}"
            return [request.refused(text)]
        generation = self._generations[sequence]
        return self._settle(request, generation, request.complete(generation))

    def _take(self, verified: speculation.Verified) -> list[Event]:
        """Take a row's token, and those of its drafts that were right."""
        sequence, accepted = verified.chunk.sequence, verified.accepted
        if not verified.chunk.drafts or sequence not in self._generations:
            return self._advance(verified.chunk, verified.choices[0])
        if self._speculation is not None:
            self._speculation.account(self._generations[sequence], verified)
        if verified.broken:
            self._scrubber.scrub(sequence.blocks)
        events: list[Event] = []
        for choice in verified.choices:
            events += self._advance(verified.chunk, choice)
        if sequence in self._generations:
            self._scheduler.accept(sequence, accepted, again=verified.broken)
        return events

    def _advance(self, chunk: Chunk, choice: Choice) -> list[Event]:
        generation = self._generations.get(chunk.sequence)
        if generation is None:  # its request has ended in this very step
            return []
        if choice is NONE:
            self._scheduler.postpone(chunk.sequence)
            return []
        request = self._requests[chunk.sequence.id]
        if choice.token == UNDECIDED:
            return self._fail(chunk)
        if choice.token < 0:
            sequences = [each.sequence for each in request.generations]
            self._scrubber.scrub(block for each in sequences for block in each.blocks)
            self._forget(request)
            return [request.failed("INFERENCE_FAILED", "The model's output is not a number.")]
        chunk.sequence.sound = True
        events = request.accept(generation, choice)
        if not generation.ended:
            self._grammars.rows.advance(chunk.sequence, choice.token)
        return self._settle(request, generation, events)

    def _settle(self, request: Request, generation: Generation, events: list[Event]) -> list[Event]:
        """Forget what has ended; returns the events to send now."""
        if generation.ended:
            self._end(generation)
        if request.ended:
            self._forget(request)
            return self._grammars.checks.hold(request.job, events)
        return events

    def _end(self, generation: Generation) -> None:
        del self._generations[generation.sequence]
        self._pipeline.end(generation.sequence)
        self._sampler.release(generation.sampling)
        self._grammars.rows.remove(generation.sequence)

    def _end_cancelled(self, request: Request) -> Event:
        self._forget(request)
        return request.cancelled()

    def _fail(self, chunk: Chunk) -> list[Event]:
        request = self._requests[chunk.sequence.id]
        self._forget(request)
        return [request.failed("OUT_OF_MEMORY", "The device ran out of memory on this request.")]

    def _forget(self, request: Request) -> None:
        del self._requests[request.job.id]
        self._grammars.forget(request.job.id)
        self._loras.forget(request)
        for generation in request.generations:
            if generation.sequence in self._generations:
                self._end(generation)

    @property
    def in_flight(self) -> int:
        return len(self._requests) + len(self._grammars.checks) + self._pipeline.in_flight

    def device_bytes(self) -> int | None:
        return torch_env.held_bytes(self._loaded.device)

    def books(self) -> dict[str, int]:
        return {
            "rows": self._scheduler.running_count,
            "waiting": self._scheduler.waiting_count + self._grammars.awaited + len(self._loras),
            "blocks": self._allocator.used_count,
        }

    def close(self) -> None:
        self._requests.clear()
        self._generations.clear()
        if hasattr(self, "_grammars"):
            self._grammars.close()
        if hasattr(self, "_allocator"):  # and with it all that was set up before
            self._allocator.leave()
            self._runner.close()
