"""Prepares the models of the part ``server``, of which one is too large beside the others.

``text``, ``image`` and ``speech`` fit on the device together. ``large`` is ``text`` once more with
an attention cache that fits only when at least one of them has left.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.card_memory import CardMemory
from benchmarks.gpu.model_files import Made, make_files
from benchmarks.gpu.recorder import Recorder
from bitinglip.home import Home
from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from bitinglip.settings import Settings
from model_store.store import ModelStore
from workers.engines.defaults import TEXT_CACHE_BYTES

KINDS = ("text", "image", "speech")
LARGE = "large"
_SHAPES = {
    "real": {"text": "1b", "image": "sdxl", "speech": "bark_small"},
    "tiny": {"text": "tiny", "image": "tiny", "speech": "least"},
}
SIDE = {"real": 1024, "tiny": 64}  #: pixels of a picture's side
_TINY_CACHE = 32 * 1024**2
#: On the CPU, planned memory beyond the estimates: what tiny models' processes take beside them.
_CPU_ROOM = 1_500_000_000


@dataclass(frozen=True, slots=True)
class ServedModels:
    made: dict[str, Made]  #: by kind, which is the model's name too
    settings: list[str]  #: for ``--set``
    large_bytes: int  #: what the server will reserve for ``large`` by its estimate


def prepare(record: Recorder, memory: CardMemory, work: Path) -> ServedModels:
    """Make the models, import them into the home below ``work``, and choose the settings."""
    # In the folder of all parts: those that come after use the same files.
    made = make_files(record.device, record.folder, _SHAPES[record.shape])
    for kind, each in made.items():
        note = f"{each.size / 1e9:.2f} GB, with the imports that it needs"
        record.figure(f"{kind}: files made and written", each.seconds, "s", note=note)
    home = Home(work / "home")
    home.create()
    store = ModelStore(home.models)
    folders = {**{kind: made[kind].path for kind in KINDS}, LARGE: made["text"].path}
    began = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: store.import_folder(item[1], item[0]), folders.items()))
    size = sum(each.size for each in made.values())
    record.figure(
        "import of all into the store",
        time.perf_counter() - began,
        "s",
        note=f"hard links, each file hashed: {size / 1e9:.2f} GB and the text model once more",
    )
    settings, large = _settings(record, memory, store)
    return ServedModels(made, settings, large)


def _settings(record: Recorder, memory: CardMemory, store: ModelStore) -> tuple[list[str], int]:
    """Return settings under which ``large`` needs the memory of the least of the three."""
    side, tiny = SIDE[record.shape], record.tiny
    cache = _TINY_CACHE if tiny else TEXT_CACHE_BYTES[record.device]
    configs = {
        "text": LoadConfig(record.device, kv_cache_bytes=cache),
        "image": LoadConfig(record.device, pixels=side * side),
        "speech": LoadConfig(record.device),
    }
    needs = {kind: estimate(store.get(kind), config).total for kind, config in configs.items()}
    together = sum(needs.values())
    settings = [
        f"models.image.image.width={side}",
        f"models.image.image.height={side}",
        "models.image.pin=true",  # what runs out of memory must be there to do so
        f"models.text.kv_cache_bytes={cache}",
    ]
    if memory.on_card:
        usable = memory.total - Settings().devices.headroom_bytes
    else:
        usable = together + _CPU_ROOM
        settings += [f"devices.cpu_memory_bytes={usable}"]
    if tiny:
        # A spare would import libraries that no worker here needs; more threads only wait.
        settings += ["workers.spare=false", "workers.threads=1"]
    least = min(size for kind, size in needs.items() if kind != "image")
    large = usable - together + least // 2
    own = estimate(store.get(LARGE), LoadConfig(record.device, kv_cache_bytes=0))
    settings += [f"models.{LARGE}.kv_cache_bytes={large - own.total}"]
    return settings, large
