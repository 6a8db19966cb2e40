"""Tells from a machine's files whether it has an NVIDIA card, and why that cannot be used.

Each function is pure but for the files below the root folder that it is given.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NVIDIA = "0x10de"
_FIRST_BLACKWELL = 0x2900  #: PCI device numbers of older generations are smaller
_FIRST_TURING = 0x1E00
_LAST_OF_VOLTA = 580  #: the last driver that knows cards older than Turing
_DISPLAY = ("0x0300", "0x0302")  #: PCI classes: VGA and 3D controllers
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_WSL_LIBRARY = "usr/lib/wsl/lib/libnvidia-ml.so.1"
#: where NVML may lie outside of the loader's path, below the root
LIBRARIES = (_WSL_LIBRARY, "run/opengl-driver/lib/libnvidia-ml.so.1")

LOST_RIGHTS = (
    "This container has lost its right to the card, as after systemctl daemon-reload on the host: "
    "restart the container. For good, start it with --device nvidia.com/gpu=all (CDI)."
)


def _open(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


@dataclass(frozen=True)
class Surroundings:
    """Shows the machine around this process: its files, its environment, and how a
    node is opened."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=dict)
    opener: Callable[[Path], None] = _open

    @property
    def in_container(self) -> bool:
        return any((self.root / name).exists() for name in (".dockerenv", "run/.containerenv"))

    @property
    def is_wsl(self) -> bool:
        return "microsoft" in text(self.root / "proc/sys/kernel/osrelease").lower()

    @property
    def has_battery(self) -> bool:
        supplies = (self.root / "sys/class/power_supply").glob("BAT*")
        return next(iter(supplies), None) is not None

    def cards_on_bus(self) -> list[Path]:
        """List the folders of NVIDIA's display devices on the PCI bus."""
        found = []
        for folder in sorted((self.root / "sys/bus/pci/devices").glob("*")):
            is_nvidia = text(folder / "vendor").strip() == NVIDIA
            if is_nvidia and text(folder / "class").startswith(_DISPLAY):
                found.append(folder)
        return found

    def expects_card(self) -> bool:
        """True if a card is there and meant for this process."""
        if self.in_container:  # which sees the host's bus
            asked = self.environ.get("NVIDIA_VISIBLE_DEVICES", "")
            return asked not in ("", "none", "void")
        wsl = self.is_wsl and (self.root / _WSL_LIBRARY).exists()
        return wsl or bool(self.cards_on_bus())

    def may_open(self) -> str | None:
        """Say why the driver's node cannot be opened though it exists; None if it can be."""
        node = self.root / "dev/nvidiactl"
        if not node.exists():
            return None
        try:
            self.opener(node)
        except OSError as error:
            if error.errno == errno.EPERM:
                return LOST_RIGHTS if self.in_container else _NO_RIGHTS
            if error.errno == errno.EACCES:
                return _NOT_OURS
        return None

    def runtime_suspended(self, bus_id: str) -> bool:
        """True if the kernel has put the card to sleep; reading this does not wake it."""
        folder = self.root / "sys/bus/pci/devices" / bus_id
        return text(folder / "power/runtime_status").strip() == "suspended"

    def module_version(self) -> str | None:
        """Return the version of the loaded kernel module; None if it does not tell."""
        lines = text(self.root / "proc/driver/nvidia/version").splitlines()
        words = lines[0].split() if lines else []
        return next((word for word in words if word[0].isdigit() and "." in word), None)

    def driver_changed(self, library: str) -> str | None:
        """Say that the driver was updated while this process, or the kernel module, ran on.

        ``library`` is the version that NVML tells. Returns None if all are of one version.
        """
        module = self.module_version()
        if module is not None and module != library:
            return (
                f"The NVIDIA driver was updated to {library}, and the kernel still runs {module}: "
                "restart the machine."
            )
        maps = text(self.root / "proc/self/maps").splitlines()
        if any("libnvidia-ml" in line and line.endswith("(deleted)") for line in maps):
            return (
                f"The NVIDIA driver {library} was replaced while the server ran; new workers may "
                "not start: restart the machine."
            )
        return None


_NO_RIGHTS = (
    "This process may not open /dev/nvidiactl: its service unit hides the card. Remove "
    "PrivateDevices and DevicePolicy from the unit, or allow char-nvidia* in DeviceAllow."
)
_NOT_OURS = (
    "This user may not open /dev/nvidiactl: add it to the group that owns it (often video or "
    "render), and restart the server."
)


def text(path: Path) -> str:
    """Return a file's text; empty where there is none, or it may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def why_missing(around: Surroundings, library_found: bool, mismatch: bool, told: str) -> str | None:
    """Say why a card that is there cannot be used, and what to do; None if none is expected.

    ``library_found``: NVML was loaded; ``mismatch``: it is of another version than the kernel
    module; ``told``: the driver's own words.
    """
    if not around.expects_card():
        return None
    return (
        around.may_open()
        or (_MISMATCH if mismatch else None)
        or (_container(around, library_found) if around.in_container else None)
        or _bound_elsewhere(around)
        or (_wsl(told) if around.is_wsl else None)
        or _driver(around, library_found, told)
    )


_MISMATCH = (
    "The NVIDIA driver was updated, and the kernel still runs the old module: restart the machine "
    "(in a container: restart it, too)."
)


def _container(around: Surroundings, library_found: bool) -> str | None:
    if not has_nodes(around):
        return (
            "This container was started without a GPU: start it with --device nvidia.com/gpu=all "
            "(CDI) or --gpus all; in a compose file, reserve a device of the driver nvidia."
        )
    if not library_found:
        return (
            "The card is in this container, and the driver's library (NVML) is not: add utility "
            "to NVIDIA_DRIVER_CAPABILITIES (compute,utility)."
        )
    return None


def _wsl(told: str) -> str:
    return (
        f"Windows has an NVIDIA card, and its driver does not answer in WSL ({told}): update the "
        "driver in Windows, run wsl --shutdown, and install no NVIDIA driver inside of WSL."
    )


def has_nodes(around: Surroundings) -> bool:
    """True if the driver's nodes are there, without which no program uses a card."""
    return any((around.root / "dev" / name).exists() for name in ("nvidiactl", "dxg"))


def _bound_elsewhere(around: Surroundings) -> str | None:
    """Name another driver that has taken every card."""
    drivers = []
    for folder in around.cards_on_bus():
        link = folder / "driver"
        drivers.append(link.resolve().name if link.exists() else "")
    if not drivers or not set(drivers) <= {"nouveau", "nova_core", "vfio-pci"}:
        return None
    if "vfio-pci" in drivers:
        return (
            "The card is bound to vfio-pci, for virtual machines: bind it to the nvidia driver, "
            "or run the server in the machine that it is given to."
        )
    return (
        f"The card is bound to {drivers[0]}, which runs no CUDA: install NVIDIA's driver, and "
        "restart the machine."
    )


def _driver(around: Surroundings, library_found: bool, told: str) -> str:
    root = around.root
    loaded = (root / "proc/driver/nvidia/version").exists() or (root / "sys/module/nvidia").exists()
    if loaded and not library_found:
        return (
            "The NVIDIA kernel module runs, and the driver's library libnvidia-ml.so.1 is not "
            "found: install the driver's libraries, or name their folder in LD_LIBRARY_PATH."
        )
    if loaded and not has_nodes(around):
        return (
            "The NVIDIA kernel module runs, and /dev/nvidiactl does not exist: run nvidia-modprobe "
            "-c 0 -u, or nvidia-smi once as root."
        )
    if loaded and (other := _closed_modules(around) or _forgotten(around)) is not None:
        return other
    if loaded:
        return (
            f"The NVIDIA driver does not show the card ({told}): look for NVRM in the kernel's log "
            "(dmesg). Cards of the RTX 50 series need the open kernel modules."
        )
    return _module(around, library_found)


def _cards_by_number(around: Surroundings) -> list[tuple[int, str]]:
    """List the PCI device numbers of the cards, which grow from generation to generation."""
    texts = [text(folder / "device").strip() for folder in around.cards_on_bus()]
    return sorted((int(each, 16), each) for each in texts if each)


def _forgotten(around: Surroundings) -> str | None:
    """Say that the loaded driver is too new for every card."""
    version, cards = around.module_version() or "", _cards_by_number(around)
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) <= _LAST_OF_VOLTA:
        return None
    if not cards or cards[-1][0] >= _FIRST_TURING:
        return None
    return (
        f"The NVIDIA driver {version} does not know this card any more (PCI device {cards[-1][1]}; "
        f"Volta or older): install driver {_LAST_OF_VOLTA}, and a torch for CUDA 12."
    )


def _closed_modules(around: Surroundings) -> str | None:
    """Say that the loaded kernel modules are those that do not know Blackwell cards."""
    version = text(around.root / "proc/driver/nvidia/version")
    newer = [card for number, card in _cards_by_number(around) if number >= _FIRST_BLACKWELL]
    if not version or not newer or "Open Kernel Module" in version:
        return None
    return (
        f"The NVIDIA driver {around.module_version()} runs with its closed kernel modules, which "
        f"do not know this card (PCI device {newer[0]}; Blackwell, such as the RTX 50 series): "
        "install the open ones (packages with 'open' in their names), and restart the machine."
    )


def _module(around: Surroundings, library_found: bool) -> str:
    """Say why the kernel module is not loaded."""
    root, cards = around.root, _cards_by_number(around)
    kernel = text(root / "proc/sys/kernel/osrelease").strip()
    listed = text(root / "lib/modules" / kernel / "modules.dep") if kernel else ""
    if "/nvidia.ko" not in listed:
        if not library_found and cards and cards[-1][0] < _FIRST_TURING:
            return (
                f"No NVIDIA driver is installed: install driver {_LAST_OF_VOLTA}, the last that "
                f"knows this card (PCI device {cards[-1][1]}; Volta or older), and a torch for "
                "CUDA 12."
            )
        if not library_found:
            return "No NVIDIA driver is installed: install driver 580 or newer."
        return (
            f"The NVIDIA driver has no kernel module for the running kernel {kernel}: build it "
            "(dkms autoinstall, with this kernel's headers), or start the kernel that it was "
            "built for."
        )
    if _secure_boot(root):
        return (
            "The NVIDIA kernel module is not loaded, and Secure Boot is on, which refuses unsigned "
            "modules: sign it and enrol the key (mokutil --import), or turn Secure Boot off."
        )
    return (
        "The NVIDIA kernel module is not loaded: if the machine has just started, it may come; "
        "else run modprobe nvidia and look for NVRM in the kernel's log (dmesg)."
    )


def _secure_boot(root: Path) -> bool:
    try:
        return (root / _SECURE_BOOT).read_bytes()[-1:] == b"\x01"
    except OSError:
        return False
