"""Probe the cards that faults have put in question, and use those again that compute.

A fresh process finds out: what the driver tells this one, and what workers remember, may be of the
time before the fault.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.resume import Probe
from workers.devices import Device

log = structlog.get_logger(__name__)

CHECK_SECONDS = 5.0


class Recheck:
    """Asks when a card may be probed, and tells what came out: its state is the deaths' affair."""

    def __init__(
        self,
        manager: ModelManager,
        probe: Probe,
        clock: Callable[[], float] = time.monotonic,
        *,
        kind: str = "cuda",
    ) -> None:
        """``kind``: of the devices that are probed; those of another wait for their time."""
        self._manager = manager
        self._probe = probe
        self._clock = clock
        self._kind = kind

    async def probe_due(self) -> None:
        """Probe what is due; called at even intervals."""
        deaths = self._manager.deaths
        due = set(deaths.due(self._clock()))
        cards = [each for each in self._manager.facts.devices if each.id in due]
        pins = {each.pin or each.id: each.id for each in cards if self._may_be_probed(each)}
        if not pins:
            return
        failed = await asyncio.to_thread(self._probe, list(pins))
        for pin, card in pins.items():
            if pin in failed:
                log.warning("a card in question does not compute", card=card, reason=failed[pin])
                deaths.still_fails(card, failed[pin], self._clock())
            else:
                log.info("a card in question computes: it is used again", card=card)
                deaths.computes(card)
        self._manager.replan()

    def _may_be_probed(self, card: Device) -> bool:
        """False for a card that takes one process at a time, beside its worker."""
        there = any(card.id in each.devices for each in self._manager.replicas())
        return card.kind == self._kind and not (card.exclusive and there)
