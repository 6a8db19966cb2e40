"""Hold what the server does without for now; /health and the metrics show it, the log says it once.

The parts of the server report here when something that they need fails, and when it works again.
Nothing here decides anything.
"""

from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger(__name__)

#: the checks of /health that can be degraded
CHECKS = (
    "database", "redis", "cluster_manager", "model_manager", "task_manager", "devices", "guard",
)  # fmt: skip


class Health:
    """Holds the problems of the server, by check of /health and by the part that has them."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, str], str] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.leaving = False  #: it will stop soon: new requests are better sent elsewhere

    def degrade(self, check: str, part: str, detail: str) -> None:
        """Note a problem. ``detail`` is public: it holds no path, no secret, no traceback."""
        if self._problems.get((check, part)) != detail:
            self._problems[check, part] = detail
            log.warning("degraded", check=check, part=part, detail=detail)
            self.on_change()

    def recover(self, check: str, part: str) -> None:
        """Note that a part works; nothing happens if it had no problem."""
        if self._problems.pop((check, part), None) is not None:
            log.info("recovered", check=check, part=part)
            self.on_change()

    def report(self, check: str, problems: Mapping[str, str]) -> None:
        """Note all problems of a check, by part; parts that had others and are absent work."""
        gone = [part for known, part in self._problems if known == check and part not in problems]
        for part in gone:
            self.recover(check, part)
        for part, detail in problems.items():
            self.degrade(check, part, detail)

    def has_problem(self, check: str, part: str) -> bool:
        return (check, part) in self._problems

    def problems(self) -> Mapping[str, str]:
        """Map each degraded check to its problems in words."""
        found: dict[str, str] = {}
        for (check, part), detail in self._problems.items():
            text = detail if part == check else f"{part}: {detail}"
            found[check] = f"{found[check]}; {text}" if check in found else text
        return found
