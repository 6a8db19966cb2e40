"""Lists which models should have one more replica now, for requests, operators or settings."""

from collections.abc import Callable, Mapping

from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.listener import ModelListener
from bitinglip.scheduling.models.state import ModelState
from bitinglip.scheduling.placement.planner import Demand
from bitinglip.settings import Settings


def list_demands(
    models: Mapping[str, ModelState],
    settings: Settings,
    facts: ResourceFacts,
    listener: ModelListener,
    now: float,
    plan_at: Callable[[float], None],
) -> list[Demand]:
    """List the replicas that models lack, and set the targets of those that are wanted.

    ``plan_at`` is told when a model that pauses after a failure may be loaded again.
    """
    demands: list[Demand] = []
    for model_state in models.values():
        waiting = listener.waiting(model_state.name)
        since = waiting.since if waiting else model_state.asked
        if since is not None:
            model_state.target = settings.model(model_state.name).replicas
        if not model_state.target:
            continue
        if model_state.retry_at > now:
            plan_at(model_state.retry_at)
            continue
        demands += facts.demands(model_state, since, waiting.level if waiting else 0)
    return demands
