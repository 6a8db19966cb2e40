"""Tells what fits into the memory of this machine, as commands see it that no server answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitinglip.home import Home
    from bitinglip.scheduling.placement.fit import FitAnswer
    from cli.context import CliContext
    from model_store.manifest import Manifest


@contextmanager
def machine(place: "CliContext") -> "Iterator[Callable[[Manifest], FitAnswer]]":
    """Yield what answers whether a model fits on this machine's devices, of which none is loaded.

    What the workers of a running server hold counts as free, since it can unload them.
    """
    from bitinglip.scheduling.models.facts import ResourceFacts
    from bitinglip.scheduling.placement.eviction import EvictionRules
    from bitinglip.scheduling.placement.footprints import Footprints
    from workers.devices import Devices

    settings = place.settings()
    own = settings.devices
    fakes = [(each.name, each.memory_bytes) for each in own.fake]
    devices = Devices.find(fakes, own.cpu_memory_bytes, own.memory_limit)
    facts = ResourceFacts(settings, devices, Footprints())
    try:
        workers = _workers(place.home)
        readings = devices.read(workers)
        for name, each in readings.items():
            held = sum(each.processes.get(pid, 0) for pid in workers)
            readings[name] = replace(each, used_bytes=max(0, each.used_bytes - held))
        facts.update(readings, [], {})
    finally:
        devices.close()
    yield lambda manifest: facts.fit(manifest, [], EvictionRules())


def _workers(home: "Home") -> list[int]:
    """Return the processes that the home's server has started, if one runs."""
    import psutil

    with suppress(psutil.Error, TypeError, ValueError):
        if (running := home.read_server_json()) is not None:
            children = psutil.Process(int(str(running.get("pid")))).children(recursive=True)
            return [child.pid for child in children]
    return []
