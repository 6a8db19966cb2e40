"""Counts the requests that limits refuse, by the limit and the tier of the key."""

from prometheus_client import CollectorRegistry

from bitinglip.telemetry.tally import OTHER, Tally

#: names of limits; a label holds no other, whatever an error says
_REASONS = frozenset(
    {
        "minute",
        "hour",
        "route-minute",
        "route-hour",
        "tokens",
        "other",
        "concurrent",
        "failed-logins",
        *(
            f"{period}.{unit}"
            for period in ("daily", "monthly")
            for unit in ("requests", "tokens", "megapixels", "audio_seconds", "gpu_seconds")
        ),
    }
)


class LimitRefusals:
    """Counts refusals; its labels are bounded: limits and tiers by name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Tally(
            "bitinglip_limit_refusals_total",
            "Requests refused by limits and quotas of keys (429)",
            ["reason", "tier"],
            registry,
        )

    def count(self, reason: str, tier: str) -> None:
        """Count one; ``tier`` is none where no key is known."""
        self._counter.add((reason if reason in _REASONS else OTHER, tier))
