"""Renders the metrics as text, whole or without what a narrowed key may not see."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_VERSIONS = frozenset({"0.0.1", "0.0.4", "1.0.0"})  #: of formats, as scrapers ask for them
MaySee = Callable[[str], bool]  #: whether a model of this name may be shown


def render(
    registry: CollectorRegistry, accept: str, may_see: MaySee | None = None
) -> tuple[bytes, str]:
    """Return the exposition in the format that ``accept`` asks for, and its content type.

    With ``may_see``, samples of other models are left out.
    """
    # The library compares and repeats any version, and fails on one that is none.
    known = [part for part in accept.split(",") if _VERSIONS.issuperset(_versions(part))]
    encode, content_type = choose_encoder(",".join(known))
    if may_see is None:
        return encode(registry), content_type
    shown = CollectorRegistry()
    shown.register(_Narrowed(registry, may_see))
    return encode(shown), content_type


class _Narrowed(Collector):
    def __init__(self, registry: CollectorRegistry, may_see: MaySee) -> None:
        self._registry = registry
        self._may_see = may_see

    def describe(self) -> Iterable[Metric]:
        """Name nothing: else the library would collect everything once more, only to register."""
        return ()

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [each for each in family.samples if self._shows(each.labels)]
            yield family

    def _shows(self, labels: dict[str, str]) -> bool:
        return "model" not in labels or self._may_see(labels["model"])


def _versions(accepted: str) -> Iterator[str]:
    """Yield the versions of a format that one part of an Accept header names."""
    for parameter in accepted.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "version":
            yield value.strip()
