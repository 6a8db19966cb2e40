"""Chooses what computes a model: all rows together, or each sequence by itself."""

from workers.engines import torch_env
from workers.engines.cuda_graphs import Capture, cuda_capture
from workers.engines.text.cache_plan import CachePlan
from workers.engines.text.decoder import Unsupported
from workers.engines.text.generate_steps import check_steps, has_prefix
from workers.engines.text.kernels import unusable
from workers.engines.text.loading import LoadedModel
from workers.engines.text.lora_slots import LoraBounds
from workers.engines.text.runner import Runner
from workers.engines.text.self_check import SelfCheck
from workers.engines.text.sequential import SequentialRunner
from workers.engines.torch_env import load_failed
from workers.protocol import Attention, Graphs

#: Why a family is computed each sequence by itself, without a look at its layers.
_WITHOUT_PAGES = {
    "vision": "it reads pictures",
    "seq2seq": "an encoder reads the prompt, and a decoder answers",
}
_LENGTHS = (12, 7)  #: tokens of two prompts: a state that sequences share would show


def open_runner(
    loaded: LoadedModel,
    plan: CachePlan,
    attention: Attention = "sdpa",
    graphs: Graphs = "off",
    loras: LoraBounds | None = None,
) -> tuple[Runner | SequentialRunner, str | None]:
    """Return what computes the model and, if it is each sequence by itself, the reason.

    Raises Refused if neither computes it as its library does, or the attention or graphs cannot be
    had.
    """
    in_place = attention == "triton"
    if in_place and (lack := unusable(loaded.device, loaded.dtype, float8=plan.eight_bits)):
        raise load_failed(f"text.attention is triton, but {lack}.")
    capture = None if graphs == "off" else _capture(loaded, graphs)
    why = _WITHOUT_PAGES.get(loaded.family, "")
    try:
        if not why:
            runner = Runner(
                loaded,
                plan,
                in_place=in_place,
                capture=capture,
                captures_all=graphs == "warmup",
                loras=loras,
            )
            return runner, None
    except Unsupported as error:
        why = error.reason
    if capture is not None:
        raise load_failed(f"text.graphs is {graphs}, which is not for this model: {why}.")
    if in_place:
        raise load_failed(f"text.attention is triton, which is not for this model: {why}.")
    if plan.eight_bits:
        raise load_failed(f"text.kv_cache_dtype is fp8, which is not for this model: {why}.")
    if loaded.spread:
        raise load_failed(f"This model cannot be split over several cards: {why}.")
    return _sequential(loaded, plan, why, loras), why


def _sequential(
    loaded: LoadedModel, plan: CachePlan, why: str, loras: LoraBounds | None
) -> SequentialRunner:
    """Return what computes each sequence by itself. Raises Refused where it does so wrongly."""
    with torch_env.library_errors("The model does not run"):
        runner = SequentialRunner(loaded, plan, loras)
        if loaded.family == "seq2seq" or has_prefix(loaded):
            check_steps(loaded)
            return runner
        check = SelfCheck(loaded, _LENGTHS)
        found = check.compute(runner.run, blocks=runner.blocks, block_size=plan.block_size)
    if check.passes(found):
        return runner
    if loaded.family == "vision":
        raise load_failed("The text engine does not compute this model as its library does.")
    raise load_failed(f"The text engine does not support this model: {why}.")


def _capture(loaded: LoadedModel, graphs: Graphs) -> Capture:
    """Return what captures graphs of steps. Raises Refused where there can be none."""
    if loaded.device.type != "cuda":
        raise load_failed(f"text.graphs is {graphs}, but the model does not run on a CUDA device.")
    if loaded.spread:
        raise load_failed(f"text.graphs is {graphs}, but the model is split over several cards.")
    return cuda_capture()
