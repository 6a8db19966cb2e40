"""Opens a model for the engine: reads its files, and makes what prepares and computes its jobs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from workers.engines import torch_env
from workers.engines.text import speculation
from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.cache_plan import cache_plan
from workers.engines.text.chat_templates import chat_templates
from workers.engines.text.conversation import Conversation
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.generate_steps import has_prefix
from workers.engines.text.grammar.grammars import Grammars
from workers.engines.text.loading import LoadedModel, private_copy
from workers.engines.text.lora_queue import LoraQueue
from workers.engines.text.lora_slots import LoraBounds
from workers.engines.text.prefix_ram import open_prefix_ram
from workers.engines.text.preprocess import Preprocessor
from workers.engines.text.runner import Runner
from workers.engines.text.runners import open_runner
from workers.engines.text.sequential import SequentialRunner
from workers.engines.weight_progress import WeightProgress
from workers.protocol import Load, Ready, TextOptions

LoadModel = Callable[[Load, Callable[[int], None]], LoadedModel]

#: Seconds that a step may take on a card: one is far shorter, but the first use of a kernel may
#: read it from a slow disk or compile it.
_CUDA_STEP_TIMEOUT = 60.0


@dataclass(slots=True, frozen=True)
class OpenedModel:
    """Holds a model that was read, and what an engine runs it with."""

    loaded: LoadedModel
    runner: Runner | SequentialRunner
    allocator: BlockAllocator
    preprocessor: Preprocessor
    grammars: Grammars
    detokenizers: DetokenizerFactory
    loras: LoraQueue
    speculation: speculation.Speculation | None  #: None: nothing is drafted
    overlaps: bool  #: the next step is queued before the tokens of the one before are known
    ready: Ready


def open_model(
    spec: Load, load_model: LoadModel, weights: WeightProgress, block_size: int
) -> OpenedModel:
    """Open a model; ``block_size``: tokens of a block of its cache.

    Raises Refused if it cannot be read or computed, or an option is not for it.
    """
    loaded = load_model(spec, weights.placed)
    device, options = loaded.device.type, spec.text or TextOptions()
    plan = cache_plan(spec, loaded.max_positions, block_size)
    runner, why = open_runner(
        loaded, plan, options.attention, options.graphs, LoraBounds.of(options)
    )
    drafting = speculation.of(options, why, device)
    weights.reach(0.95)
    context = min(plan.context, runner.blocks * block_size)
    tokenizer = private_copy(loaded.tokenizer)
    templates = chat_templates(tokenizer, Path(spec.path), loaded.model_type)
    wanted = options.response_template
    chat = Conversation(templates, tokenizer, loaded.model_type, wanted, loaded.pictures)
    loaded = replace(loaded, eos_ids=loaded.eos_ids | chat.turn_ends)
    overlaps = _overlaps(options, why, device)
    kept = open_prefix_ram(spec, runner.cache, why)
    grammars = Grammars(loaded.tokenizer, loaded.eos_ids, loaded.vocab_size)
    return OpenedModel(
        loaded=loaded,
        runner=runner,
        allocator=BlockAllocator(runner.blocks, block_size, kept),
        preprocessor=Preprocessor(
            tokenizer,
            chat,
            max_context=context,
            vocab_size=loaded.vocab_size,
            grammars=grammars.compiler,
            starts=loaded.starts,
            scores_prompts=not has_prefix(loaded),
        ),
        grammars=grammars,
        detokenizers=DetokenizerFactory(loaded.tokenizer),
        loras=LoraQueue(runner.loras),
        speculation=drafting,
        overlaps=overlaps,
        ready=Ready(
            slots=min(runner.rows, runner.blocks),
            max_context=context,
            dtype=torch_env.dtype_name(loaded.dtype),
            quantization=loaded.quantization,
            device=spec.device,
            has_chat_template=templates is not None and templates.default is not None,
            step_timeout=_CUDA_STEP_TIMEOUT if device == "cuda" else 0.0,
            sequential=why,
        ),
    )


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
