"""Ten made-up machines: a folder of the kernel's files, a driver that is stood in for, a torch.

Each is what an operator may have; the product looks at it as it looks at a real one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from tests.support.nvml import NVMLError, StandInCard, StandInNvml
from workers.devices import Devices, DeviceUsage
from workers.devices.cards import Cards
from workers.devices.host import Host
from workers.devices.surroundings import NVIDIA, Surroundings
from workers.devices.torch_build import TorchBuild
from workers.devices.torch_report import TorchReport

GIB = 1024**3
KERNEL = "6.8.0-50-generic"
WSL_KERNEL = "5.15.167.4-microsoft-standard-WSL2"
NO_LIBRARY = StandInNvml.NVML_ERROR_LIBRARY_NOT_FOUND
NOT_LOADED = StandInNvml.NVML_ERROR_DRIVER_NOT_LOADED
BUS = "0000:01:00.0"
_NOT_TOLD = NVMLError(StandInNvml.NVML_ERROR_NOT_SUPPORTED)


def memory(total_gib: float, used_gib: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(total=int(total_gib * GIB), used=int(used_gib * GIB))


def card(name: str, total_gib: float, number: int = 0, **told: object) -> StandInCard:
    answers = {"uuid": f"GPU-{number:08d}-1111-2222-3333-444444444444", **told}
    return StandInCard(name, memory=memory(total_gib, 0.5), **answers)  # type: ignore[arg-type]


@dataclass
class Machine:
    """Holds stand-ins for the real machine, as the product takes them."""

    nvml: StandInNvml
    files: dict[str, str] = field(default_factory=dict)  #: by path below the root
    environ: Mapping[str, str] = field(default_factory=dict)
    build: TorchBuild | None = field(default_factory=lambda: TorchBuild("2.13.0", "13.0"))
    clock: float = 0.0
    denied: OSError | None = None  #: what opening /dev/nvidiactl raises
    look_seconds: float = 2.0
    report: TorchReport | None = None  #: what torch answers
    asked: int = 0  #: times that torch was
    loses: int | None = None  #: the number of a card that falls off the bus after the start

    def write(self, root: Path) -> Path:
        for name, text in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                (path.parent / text[3:]).mkdir(parents=True, exist_ok=True)
                path.symlink_to(text[3:])
            else:
                path.write_text(text)
        return root

    def cards(self, root: Path) -> Cards:
        def opener(_path: Path) -> None:
            if self.denied is not None:
                raise self.denied

        return Cards.find(
            self.environ.get("CUDA_VISIBLE_DEVICES"),
            self.nvml,
            around=Surroundings(self.write(root), self.environ, opener),
            build=self.build,
            clock=lambda: self.clock,
            look_seconds=self.look_seconds,
            first_seconds=self.look_seconds,
        )

    def devices(
        self, root: Path, host: Host | None = None, limits: Mapping[str, int] | None = None
    ) -> Devices:
        def ask(cards: bool) -> TorchReport | None:
            assert cards == (not self.nvml.cards)  # which wakes them
            self.asked += 1
            return self.report

        return Devices(self.cards(root), host or Host(), limits=limits or {}, ask=ask)


class MadeUpHost(Host):
    """Simulates a processor and RAM that are the same on every machine."""

    def __init__(self) -> None:
        self.name = "a processor"
        self.total_bytes = 64 * GIB
        self.waits: float | None = None

    def read(self, pids: Iterable[int]) -> DeviceUsage:  # noqa: ARG002  the interface of a device
        return DeviceUsage(4 * GIB, {})

    def pressure(self) -> float | None:
        return self.waits


def kernel(release: str = KERNEL) -> dict[str, str]:
    return {"proc/sys/kernel/osrelease": f"{release}\n"}


def on_bus(bus: str = BUS, bound: str | None = "nvidia", **power: str) -> dict[str, str]:
    """Return an NVIDIA card on the PCI bus, and the driver that it is bound to."""
    folder = f"sys/bus/pci/devices/{bus}"
    files = {f"{folder}/vendor": f"{NVIDIA}\n", f"{folder}/class": "0x030000\n"}
    files |= {f"{folder}/power/{name}": f"{value}\n" for name, value in power.items()}
    if bound is not None:
        files[f"{folder}/driver"] = f"-> ../../../../bus/pci/drivers/{bound}"
    return kernel() | files


def driver(version: str = "580.95") -> dict[str, str]:
    """Return the driver's module, loaded, and its nodes."""
    line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Sep 23\n"
    return {"proc/driver/nvidia/version": line, "dev/nvidiactl": "", "dev/nvidia0": ""}


def no_driver() -> Machine:
    """Return a machine without a card and without a driver: the CPU is what it has."""
    return Machine(StandInNvml(init=NO_LIBRARY), kernel())


def old_driver() -> Machine:
    """Driver 550 under a torch for CUDA 13."""
    nvml = StandInNvml(card("NVIDIA GeForce RTX 4090", 24, capability=(8, 9)), cuda=12040)
    nvml.version = "550.144.03"
    return Machine(nvml, on_bus() | driver("550.144.03"))


def card_without_nvml() -> Machine:
    """Return a card on the bus after a kernel update: the module was not built for the new
    kernel."""
    modules = {f"lib/modules/{KERNEL}/modules.dep": "kernel/net/ipv4/ip_gre.ko:\n"}
    return Machine(StandInNvml(init=NOT_LOADED), on_bus(bound=None) | modules)


def two_cards() -> Machine:
    """Return two cards that are well; ``lose`` makes one fall off the bus."""
    cards = [card(f"NVIDIA RTX A5000 {'ab'[n]}", 24, n, capability=(8, 6)) for n in range(2)]
    return Machine(StandInNvml(*cards), on_bus() | driver())


def lost_card() -> Machine:
    """Return two cards, of which the first falls off the bus after the start."""
    machine = two_cards()
    machine.loses = 0
    return machine


def lose(machine: Machine, number: int = 0) -> None:
    machine.nvml.cards[number].memory = NVMLError(StandInNvml.NVML_ERROR_GPU_IS_LOST)


def two_unequal_cards() -> Machine:
    """Return a card that torch has no code for beside one that it has."""
    old = card("NVIDIA GeForce GTX 1080 Ti", 11, 0, capability=(6, 1))
    new = card("NVIDIA GeForce RTX 3060", 12, 1, capability=(8, 6))
    return Machine(StandInNvml(old, new), on_bus() | driver())


def mig() -> Machine:
    """Return a card in two instances beside a whole one in exclusive mode."""
    halves = [
        card("NVIDIA A100 MIG 3g.20gb", 20, uuid=f"MIG-{n}", capability=(8, 0), events=_NOT_TOLD)
        for n in "ab"
    ]
    parted = card("NVIDIA A100", 40, 0, instances=halves, capability=(8, 0))
    whole = card("NVIDIA A100", 40, 1, compute_mode=3, capability=(8, 0))
    return Machine(StandInNvml(parted, whole), on_bus() | driver())


def gb10() -> Machine:
    """Return a GB10: card and processor share one memory, and NVML tells none of it."""
    unified = card("NVIDIA GB10", 0, capability=(12, 1), events=_NOT_TOLD)
    unified.memory = _NOT_TOLD
    return Machine(StandInNvml(unified), on_bus() | driver())


def wsl() -> Machine:
    """Return WSL: no bus, no process list, and figures that cannot be."""
    inside = card("NVIDIA GeForce RTX 4070", 12, capability=(8, 9), processes=_NOT_TOLD)
    inside.milliwatts = inside.events = _NOT_TOLD
    inside.memory.used = 2**64 - 1
    files = kernel(WSL_KERNEL) | {"dev/dxg": "", "usr/lib/wsl/lib/libnvidia-ml.so.1": ""}
    return Machine(StandInNvml(inside), files)


def container_without_gpu() -> Machine:
    """Return a container of a CUDA image that was started without --gpus."""
    files = on_bus() | {".dockerenv": ""}
    return Machine(StandInNvml(init=NO_LIBRARY), files, {"NVIDIA_VISIBLE_DEVICES": "all"})


def laptop() -> Machine:
    """Return a laptop: its card should sleep while no model is loaded."""
    files = on_bus(control="auto", runtime_status="active") | driver()
    files |= {"sys/class/power_supply/BAT0/type": "Battery\n"}
    return Machine(StandInNvml(card("NVIDIA RTX A2000 Laptop GPU", 4, capability=(8, 6))), files)


MACHINES: dict[str, Callable[[], Machine]] = {
    "no driver": no_driver,
    "old driver": old_driver,
    "card without NVML": card_without_nvml,
    "lost card": lost_card,
    "two unequal cards": two_unequal_cards,
    "MIG and exclusive mode": mig,
    "GB10": gb10,
    "WSL": wsl,
    "container without GPU": container_without_gpu,
    "laptop": laptop,
}
