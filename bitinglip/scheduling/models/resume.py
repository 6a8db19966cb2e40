"""Probe the cards after a suspension, before loaded models get work.

A suspended machine may lose what lay in a card's memory, or come back with a driver that no new
process can use. What dies of that is not the fault of a request or of a model.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from bitinglip.scheduling.models.listener import ModelListener
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.state import JUMP_SECONDS, Replica, suspended_seconds
from workers.devices import Devices
from workers.worker import Worker

log = structlog.get_logger(__name__)

SOURCE = "suspend"
LOOK_SECONDS = 1.0
_RETRY_SECONDS = 30.0  #: between two probes of a card that fails
_KILL_SECONDS = 10.0
ENDED = "was ended after the machine was suspended"

_FAILED = (
    "The machine was suspended, and the card does not compute since ({why}). Its workers were "
    "ended, so that the driver's module can be loaded again: `sudo rmmod nvidia_uvm && sudo "
    "modprobe nvidia_uvm`; if that does not help, restart the machine. It is probed again every "
    "30 s."
)

#: Takes what CUDA_VISIBLE_DEVICES says, blocks, and maps each card that fails to what is wrong.
Probe = Callable[[Sequence[str]], Mapping[str, str]]


class Pool(Protocol):
    @property
    def workers(self) -> list[Worker]: ...
    async def kill(self, worker: Worker, cause: str) -> None: ...


class Resume:
    """Looks for a suspension of the machine, and keeps work from the cards until a probe passes."""

    def __init__(
        self,
        devices: Devices,
        manager: ModelManager,
        listener: ModelListener,
        pool: Pool,
        probe: Probe,
        *,
        kind: str = "cuda",
    ) -> None:
        """``kind``: of the devices that are probed."""
        self._devices = devices
        self._manager = manager
        self._listener = listener
        self._pool = pool
        self._probe = probe
        self._kind = kind
        self._known = suspended_seconds()
        self._in_question: set[str] = set()
        self._next_probe = 0.0

    async def check(self) -> None:
        """Notice a suspension, and probe cards that are in question; called at even intervals."""
        slept = suspended_seconds() - self._known
        if slept > JUMP_SECONDS:
            self._known += slept
            self._question(slept)
        if self._in_question and time.monotonic() >= self._next_probe:
            await self._prove(sorted(self._in_question))
            self._next_probe = time.monotonic() + _RETRY_SECONDS

    def _question(self, slept: float) -> None:
        cards = [
            each.id
            for each in self._devices.list()
            # A card that takes one process at a time cannot be probed beside its worker.
            if each.kind == self._kind and not (each.exclusive and self._on({each.id}))
        ]
        log.warning("the machine was suspended", seconds=round(slept), probed=cards)
        self._in_question |= set(cards)
        self._next_probe = 0.0
        # New loads go on: each is a new process, which finds out for itself.
        for replica in self._on(self._in_question):
            replica.held = True

    async def _prove(self, cards: list[str]) -> None:
        pins = {each.pin or each.id: each.id for each in self._devices.list() if each.id in cards}
        found = await asyncio.to_thread(self._probe, list(pins))
        failed = {pins[pin]: why for pin, why in found.items()}
        for card in cards:
            if card in failed:
                reason = _FAILED.format(why=failed[card])
                log.error("a card fails after a suspension", card=card, reason=reason)
                self._devices.mark(card, "doubtful", reason, source=SOURCE)
            else:
                log.info("a card computes after a suspension", card=card)
                self._devices.clear(card, source=SOURCE)
                self._in_question.discard(card)
        await self._end_workers({replica.id for replica in self._on(set(failed))})
        for replica in self._manager.replicas():
            if replica.held and self._in_question.isdisjoint(replica.devices):
                replica.held = False
                self._listener.on_ready(replica.model)
        self._manager.replan()

    async def _end_workers(self, ids: set[str]) -> None:
        kills = [
            asyncio.ensure_future(self._pool.kill(worker, ENDED))
            for worker in self._pool.workers
            if worker.id in ids
        ]
        if kills:
            _, stuck = await asyncio.wait(kills, timeout=_KILL_SECONDS)
            for kill in stuck:  # the process is stuck in the driver
                kill.cancel()

    def _on(self, cards: set[str]) -> list[Replica]:
        return [each for each in self._manager.replicas() if not cards.isdisjoint(each.devices)]
