"""Grants a node's memory to the workers of all gateways: the agent's side of what is reserved."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from workers.devices import CPU, Device, Devices, DeviceUsage
from workers.devices.device import Elsewhere
from workers.nodes.folder import AgentFolder
from workers.nodes.messages import AgentConfig, Holding, Holdings, OpenWorker
from workers.nodes.node_ledger import NodeLedger
from workers.nodes.reservations import Entry, Room, Viewer, key_of, keyed

log = logging.getLogger(__name__)


class Granting:
    """Asks the node's ledger for the agent's workers, and tells gateways of each other."""

    def __init__(
        self,
        config: AgentConfig,
        devices: Devices,
        folder: AgentFolder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError. ``clock`` counts alike for all processes of the machine."""
        self._config = config
        self._devices = devices
        self._ledger = NodeLedger(folder, clock)
        self._clock = clock
        self._readings: Mapping[str, DeviceUsage] = {}

    async def reserve(self, serial: int, spec: OpenWorker, pids: Sequence[int]) -> str | None:
        """Reserve memory for a worker; return why that cannot be.

        ``pids``: of the agent's processes.
        """
        return await asyncio.to_thread(self._reserve, serial, spec, pids)

    async def release(self, serial: int) -> None:
        """Give back a worker's memory; its process is gone."""
        await asyncio.to_thread(self._ledger.release, serial)

    async def take(self, gateway: str, told: Holdings) -> None:
        """Take over what a gateway holds, and what it wishes others to free."""
        await asyncio.to_thread(self._take, gateway, told)

    async def forget(self, gateway: str) -> None:
        """Drop the wishes of a gateway that is gone."""
        await asyncio.to_thread(self._ledger.wish, self._viewer(gateway), {}, {})

    def look(self, readings: Mapping[str, DeviceUsage]) -> None:
        """Look at what other agents have reserved; blocks. ``readings``: of the devices."""
        self._readings = readings
        self._ledger.look()

    def elsewhere(self, gateway: str) -> dict[str, Elsewhere]:
        """Return what others than this gateway have of the devices, by id; may wait for a disk."""
        keys = {each.id: self._key(each) for each in self._devices.list()}
        return self._ledger.elsewhere(self._viewer(gateway), keys)

    def _reserve(self, serial: int, spec: OpenWorker, pids: Sequence[int]) -> str | None:
        told = Holding(worker=spec.name, devices=spec.reserves, ram=spec.ram)
        try:
            wanted = self._entry(spec.gateway, told)
        except KeyError as error:
            return f"there is no device {error.args[0]!r} any more"
        readings = self._look_at(pids)
        rooms = [
            Room(each, self._key(each), used.used_bytes if used else 0, self._headroom(each))
            for each in self._devices.list()
            for used in [readings.get(each.id)]
        ]
        try:
            return self._ledger.reserve(serial, wanted, rooms)
        except OSError as error:
            return f"its ledger could not be written ({error.strerror})"

    def _look_at(self, pids: Sequence[int]) -> Mapping[str, DeviceUsage]:
        """Look at the devices now. Where that fails the last look stands."""
        try:
            return self._devices.read(pids)
        except (OSError, psutil.Error) as error:
            log.warning("the devices could not be read before a load: %s", error)
            return self._readings

    def _take(self, gateway: str, told: Holdings) -> None:
        entries = {}
        for each in told.workers:
            try:
                entries[each.worker] = self._entry(gateway, each)
            except KeyError:  # on a device that is not there any more: what was reserved stays
                continue
        self._ledger.update(gateway, entries)
        keys = {each.id: self._key(each) for each in self._devices.list()}
        wishes, others = (
            {keys[each]: size for each, size in sizes.items() if each in keys}
            for sizes in (told.wishes, told.others)
        )
        self._ledger.wish(self._viewer(gateway), wishes, others)

    def _entry(self, gateway: str, told: Holding) -> Entry:
        """Return a worker's part of the ledger. Raises KeyError for a device that is not there."""
        there, node = self._devices.list(), self._config.node
        return Entry(
            gateway=gateway,
            node=node,
            worker=told.worker,
            devices=keyed(told.devices, node, there),
            host=f"{node}/{CPU}",
            ram=told.ram,
            held={self._key(each): told.held[each.id] for each in there if each.id in told.held},
            idle_since=None if told.idle is None else self._clock() - told.idle,
            pinned=told.pinned,
            leaving_since=self._clock() if told.leaving else None,
        )

    def _viewer(self, gateway: str) -> Viewer:
        return Viewer(gateway, self._config.node)

    def _key(self, device: Device) -> str:
        return key_of(self._config.node, device)

    def _headroom(self, device: Device) -> int:
        screen = self._config.display_headroom_bytes if device.display else 0
        return max(device.headroom(self._config.headroom_bytes), screen)
