"""Chooses what computes a model: all rows together, or each sequence by itself."""

from workers.engines.text.cache_plan import CachePlan
from workers.engines.text.decoder import Unsupported
from workers.engines.text.loading import LoadedModel
from workers.engines.text.runner import Runner
from workers.engines.text.self_check import SelfCheck
from workers.engines.text.sequential import SequentialRunner
from workers.engines.torch_env import load_failed

_LENGTHS = (12, 7)  #: tokens of two prompts: a state that sequences share would show


def open_runner(
    loaded: LoadedModel, plan: CachePlan
) -> tuple[Runner | SequentialRunner, str | None]:
    """Return what computes the model and, if it is each sequence by itself, the reason.

    Raises Refused if neither computes it as its library does.
    """
    try:
        return Runner(loaded, plan), None
    except Unsupported as error:
        why = error.reason
    if loaded.spread:
        raise load_failed(f"This model cannot be split over several cards: {why}.")
    runner = SequentialRunner(loaded, plan)
    check = SelfCheck(loaded, _LENGTHS)
    same, _ = check.passes(runner.run, blocks=runner.blocks, block_size=plan.block_size)
    if not same:
        raise load_failed(f"The text engine does not support this model: {why}.")
    return runner, why
