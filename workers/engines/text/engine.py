"""The text engine batches continuously over transformers' model classes, on CPU and CUDA."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from workers.engines import defaults, torch_env
from workers.engines.activity import busy_with
from workers.engines.base import Refused
from workers.engines.job_table import JobTable
from workers.engines.text import speculation
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache_plan import cache_plan
from workers.engines.text.chat_templates import chat_templates
from workers.engines.text.conversation import Conversation
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.draw import UNDECIDED
from workers.engines.text.flight import NONE, Launcher
from workers.engines.text.generate_steps import has_prefix
from workers.engines.text.generation import Generation
from workers.engines.text.grammar.compiler import Compiled
from workers.engines.text.grammar.grammars import Grammars
from workers.engines.text.loading import LoadedModel, load, private_copy
from workers.engines.text.lora_queue import LoraQueue
from workers.engines.text.lora_slots import LoraBounds
from workers.engines.text.pipeline import Pipeline
from workers.engines.text.plan import Chunk, Sequence
from workers.engines.text.prefix_ram import open_prefix_ram
from workers.engines.text.preprocess import PreparedJob, Preprocessor
from workers.engines.text.request import Request
from workers.engines.text.runner import Runner
from workers.engines.text.runners import open_runner
from workers.engines.text.sample import Choice
from workers.engines.text.sampler import Sampler
from workers.engines.text.scheduler import Scheduler
from workers.engines.text.sequential import SequentialRunner
from workers.engines.text.warmup import largest_jobs, paced
from workers.engines.weight_progress import WeightProgress, weights_read
from workers.protocol import Event, Load, Ready, TextJob, TextOptions

log = logging.getLogger(__name__)

#: Seconds that a step may take on a card: one is far shorter, but the first use of a kernel may
#: read it from a slow disk or compile it.
_CUDA_STEP_TIMEOUT = 60.0
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

    def __init__(
        self,
        *,
        step_tokens: int | None = None,
        block_size: int = _BLOCK_SIZE,
        load_model: Callable[[Load, Callable[[int], None]], LoadedModel] = load,
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
            ready = self._load(spec, weights)
        if spec.device == "cuda" if spec.warmup is None else spec.warmup:
            self._warm_up(ready)
        progress(1.0)
        return ready

    def _load(self, spec: Load, weights: WeightProgress) -> Ready:
        loaded = self._load_model(spec, weights.placed)
        device, options = loaded.device.type, spec.text or TextOptions()
        plan = cache_plan(spec, loaded.max_positions, self._block_size)
        self._runner, why = open_runner(
            loaded, plan, options.attention, options.graphs, LoraBounds.of(options)
        )
        self._loras = LoraQueue(self._runner.loras)
        self._speculation = speculation.of(options, why, device)
        weights.reach(0.95)
        rows = min(self._runner.rows, self._runner.blocks)
        context = min(plan.context, self._runner.blocks * self._block_size)
        tokenizer = private_copy(loaded.tokenizer)
        templates = chat_templates(tokenizer, Path(spec.path), loaded.model_type)
        wanted = options.response_template
        chat = Conversation(templates, tokenizer, loaded.model_type, wanted, loaded.pictures)
        loaded = replace(loaded, eos_ids=loaded.eos_ids | chat.turn_ends)
        overlaps = _overlaps(options, why, device)
        kept = open_prefix_ram(spec, self._runner.cache, why)
        self._allocator = BlockAllocator(self._runner.blocks, self._block_size, kept)
        self._set_up(loaded, rows, overlaps=overlaps)
        self._preprocessor = Preprocessor(
            tokenizer,
            chat,
            max_context=context,
            vocab_size=loaded.vocab_size,
            grammars=self._grammars.compiler,
            starts=loaded.starts,
            scores_prompts=not has_prefix(loaded),
        )
        return Ready(
            slots=rows,
            max_context=context,
            dtype=torch_env.dtype_name(loaded.dtype),
            quantization=loaded.quantization,
            device=spec.device,
            has_chat_template=templates is not None and templates.default is not None,
            step_timeout=_CUDA_STEP_TIMEOUT if device == "cuda" else 0.0,
            sequential=why,
        )

    def _set_up(self, loaded: LoadedModel, rows: int, *, overlaps: bool) -> None:
        self._loaded = loaded
        self._detokenizers = DetokenizerFactory(loaded.tokenizer)
        self._grammars = Grammars(loaded.tokenizer, loaded.eos_ids, loaded.vocab_size)
        tokens = self._step_tokens or defaults.TEXT_STEP_TOKENS[loaded.device.type]
        self._scheduler = Scheduler(
            self._allocator, max_rows=rows, step_tokens=tokens, inspect=self._inspect
        )
        self._pipeline = Pipeline(
            Launcher(self._runner, self._sampler, self._grammars.rows, self._generations),
            self._runner,
            self._scheduler,
            self._allocator,
            device=loaded.device,
            overlaps=overlaps,
            take=self._take,
            fail=self._fail,
        )

    def _warm_up(self, ready: Ready) -> None:
        """Compute the largest steps once: what memory they take is told with the load."""
        with busy_with("warmup"):
            self._run_largest(ready, ready.slots)
            self._grammars.compiler.warm_up()
            if ready.device == "cuda" and self._step_tokens is None:
                self._pace(ready)

    def _run_largest(self, ready: Ready, rows: int) -> int:
        """Run jobs of the largest shapes to their ends; return the tokens of the longest prompt."""
        jobs = largest_jobs(
            rows=rows,
            step_tokens=self._scheduler.step_tokens,
            context=ready.max_context or 1,
            vocab_size=self._loaded.vocab_size,
        )
        for job in jobs:
            self.submit(job)
        while self.in_flight:
            self.step()
        return len(jobs[0].prompts[0].ids)

    def _pace(self, ready: Ready) -> None:
        """Take smaller steps where a full one would hold up the answers that run for long."""
        usual, began = self._scheduler.step_tokens, time.monotonic()
        tokens = self._run_largest(ready, 1)
        step_tokens = paced(usual, tokens, time.monotonic() - began)
        if step_tokens < usual:
            self._scheduler.set_step(step_tokens)
            log.info("prompts are read %d tokens at a time, not %d", step_tokens, usual)

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
            return [request.failed("INFERENCE_FAILED", f"The text's grammar failed: {error}")]
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
            self._scrub([sequence])
        events: list[Event] = []
        for choice in verified.choices:
            events += self._advance(verified.chunk, choice)
        if sequence in self._generations:
            self._scheduler.accept(sequence, accepted, again=verified.broken)
        return events

    def _scrub(self, sequences: Iterable[Sequence]) -> None:
        """Zero what sequences have in the cache, and unpublish it."""
        held = [block for each in sequences for block in each.blocks]
        self._runner.scrub(self._allocator.forget(held))

    def _inspect(self, blocks: list[int]) -> None:
        """Scrub blocks of a sequence that was not found broken, if they hold NaN or infinity.

        A prompt may end before its last piece is computed, which is what tells.
        """
        if not self._runner.hold_numbers(blocks):
            self._runner.scrub(self._allocator.forget(blocks))

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
            self._scrub(each.sequence for each in request.generations)
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


def _overlaps(options: TextOptions, sequential: str | None, device: str) -> bool:
    """Return whether steps overlap; ``sequential``: why sequences are computed one by one.

    Raises Refused where they cannot, though the options say that they do.
    """
    lack = None if sequential is None else f"is not for this model: {sequential}"
    if options.speculation != "off":
        lack = "is not for text.speculation: drafts follow tokens that are known"
    if options.overlap == "on" and lack is not None:
        raise torch_env.load_failed(f"text.overlap is on, which {lack}.")
    wanted = device == "cuda" if options.overlap == "auto" else options.overlap == "on"
    return wanted and lack is None
