"""Checks what the server finds as a service of systemd that it does not find in a shell.

The unit's properties are read, and judged beside this machine's files; nothing is started.
"""

import fnmatch
import grp
import os
import pwd
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Settings

UNIT = "bitinglip.service"
_SECONDS = 10.0  #: limit on the answer of systemctl
_NODES = ("nvidiactl", "nvidia-uvm", "nvidia0")
#: what the kernel calls the groups of device numbers of those nodes
_NUMBERS = {"nvidiactl": "nvidia", "nvidia0": "nvidia", "nvidia-uvm": "nvidia-uvm"}
_HOMES = ("home", "root", "run/user")
_LEAST_LOCKED = 1 << 30  #: bytes that offloading may pin
#: variables that decide what a server finds, beside those of its settings
_TELLING = ("CUDA_", "LD_LIBRARY_PATH", "LD_PRELOAD", "NVIDIA_", "PYTORCH_", "HF_", "BITINGLIP_")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Unit:
    """Reads a unit's properties as ``systemctl show`` prints them; some come several times."""

    name: str
    properties: Mapping[str, Sequence[str]]

    def get(self, name: str) -> str:
        return " ".join(self.properties.get(name, ())).strip()

    def is_on(self, name: str) -> bool:
        return self.get(name) in ("yes", "true")

    @property
    def user(self) -> str:
        return self.get("User") or "root"

    @property
    def environment(self) -> dict[str, str]:
        try:
            words = shlex.split(self.get("Environment"))
        except ValueError:
            return {}
        return dict(word.split("=", 1) for word in words if "=" in word)

    def home(self, root: Path) -> Path:
        """Return the home folder of the server that the unit starts."""
        if chosen := self.environment.get("BITINGLIP_HOME"):
            return Path(chosen)
        folder = _own_folder(self.user, root)
        return folder / ".bitinglip"


def read(name: str) -> "Unit | Finding":
    """Ask systemd for a unit; what is wrong comes as a finding."""
    try:
        told = subprocess.run(
            ["systemctl", "show", "--no-pager", "--", name],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return _unread(name, "systemctl is not there")
    except (OSError, subprocess.TimeoutExpired):
        return _unread(name, "systemctl does not answer")
    unit = parse(name, told.stdout)
    if told.returncode or not unit.properties:
        return _unread(name, told.stderr.strip().partition("\n")[0] or "systemctl tells nothing")
    if unit.get("LoadState") != "loaded":
        state = unit.get("LoadState") or "unknown"
        advice = "copy deploy/bitinglip.service to /etc/systemd/system and adapt it"
        return Finding("service", "error", f"{name} is {state}", advice)
    return unit


def _unread(name: str, why: str) -> Finding:
    advice = "run it where systemd runs the server; in a container, run doctor there"
    return Finding("service", "error", f"{name} cannot be read: {why}", advice)


def parse(name: str, text: str) -> Unit:
    """Read what ``systemctl show`` prints."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return Unit(name, found)


def every_difference(
    unit: Unit, settings: "Settings", environ: Mapping[str, str], root: Path = Path("/")
) -> Iterator[Finding]:
    """Report what keeps the service from what a shell has, and whose server it is."""
    state, result = unit.get("ActiveState"), unit.get("Result")
    detail = f"{unit.name} ({state or 'unknown'}) runs as {unit.user}, home {unit.home(root)}"
    if state == "failed":
        yield Finding(
            "service",
            "error",
            f"{detail}; it has failed ({result})",
            f"see journalctl -u {unit.name}",
        )
    else:
        yield Finding("service", "ok", detail)
    yield from _cards(unit, root)
    yield from _folders(unit, root)
    yield from _processes(unit, settings)
    yield from _variables(unit, environ)


# ---- cards ---------------------------------------------------------------------------------------


def _cards(unit: Unit, root: Path) -> Iterator[Finding]:
    nodes = [name for name in _NODES if os.path.lexists(root / "dev" / name)]
    if not nodes:
        return
    if unit.is_on("PrivateDevices"):
        yield _wrong("PrivateDevices=yes hides the card", "set PrivateDevices=no in the unit")
        return
    allowed = [each.split(" ")[0] for each in unit.properties.get("DeviceAllow", ()) if each]
    if allowed or unit.get("DevicePolicy") in ("closed", "strict"):
        hidden = [name for name in nodes if not _is_allowed(name, allowed)]
        if hidden:
            names = ", ".join(f"/dev/{name}" for name in hidden)
            yield _wrong(
                f"DevicePolicy and DeviceAllow hide {names}", "add DeviceAllow=char-nvidia* rw"
            )
    if "nvidia-uvm" not in nodes:
        yield Finding(
            "service",
            "warning",
            "/dev/nvidia-uvm does not exist, without which no program computes on a card",
            "run nvidia-modprobe -u -c 0 in an ExecStartPre=-+ of the unit",
        )
    yield from _rights(unit, root, nodes)


def _is_allowed(node: str, allowed: Sequence[str]) -> bool:
    numbers = f"char-{_NUMBERS[node]}"
    return any(
        fnmatch.fnmatch(numbers, each) or fnmatch.fnmatch(f"/dev/{node}", each) for each in allowed
    )


def _rights(unit: Unit, root: Path, nodes: Sequence[str]) -> Iterator[Finding]:
    """Report nodes that the unit's user may not open, and the group that may."""
    if unit.user in ("root", "0"):
        return
    uid, groups = _identity(unit)
    for name in nodes:
        found = (root / "dev" / name).stat()
        if found.st_mode & 0o006 == 0o006 or found.st_uid == uid:
            continue
        if found.st_mode & 0o060 == 0o060 and found.st_gid in groups:
            continue
        group = _group_name(found.st_gid)
        mode = stat.S_IMODE(found.st_mode)
        yield _wrong(
            f"{unit.user} may not open /dev/{name} (group {group}, mode {mode:o})",
            f"add SupplementaryGroups={group} to the unit",
        )
        return


def _identity(unit: Unit) -> tuple[int | None, set[int]]:
    """Return the number of the unit's user, and those of all its groups."""
    names = [*unit.get("SupplementaryGroups").split(), *unit.get("Group").split()]
    groups = {number for name in names if (number := _group_number(name)) is not None}
    try:
        entry = pwd.getpwuid(int(unit.user)) if unit.user.isdecimal() else pwd.getpwnam(unit.user)
    except KeyError:
        return None, groups
    return entry.pw_uid, groups | set(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _group_number(name: str) -> int | None:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _own_folder(user: str, root: Path) -> Path:
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        return root


# ---- folders, processes, variables ---------------------------------------------------------------


def _folders(unit: Unit, root: Path) -> Iterator[Finding]:
    home = unit.home(root)
    below = home.relative_to(home.anchor)
    guard = unit.get("ProtectHome")
    if guard not in ("", "no") and any(below.is_relative_to(each) for each in _HOMES):
        yield _wrong(
            f"ProtectHome={guard} keeps the server from its home {home}",
            "set BITINGLIP_HOME to a folder of StateDirectory, or ProtectHome=no",
        )
    strict = unit.get("ProtectSystem") == "strict"
    writable = [Path("/var/lib", name) for name in unit.get("StateDirectory").split()]
    writable += [Path(each.lstrip("-+")) for each in unit.get("ReadWritePaths").split()]
    if strict and not any(home.is_relative_to(each) for each in writable):
        yield _wrong(
            f"ProtectSystem=strict keeps the server from writing to its home {home}",
            f"add ReadWritePaths={home}",
        )


def _processes(unit: Unit, settings: "Settings") -> Iterator[Finding]:
    if unit.is_on("MemoryDenyWriteExecute"):
        yield _wrong(
            "MemoryDenyWriteExecute=yes refuses code that torch builds as it runs",
            "set MemoryDenyWriteExecute=no",
        )
    drain, stop = settings.server.drain_timeout, span(unit.get("TimeoutStopUSec"))
    if stop is not None and stop <= drain:
        yield Finding(
            "service",
            "warning",
            f"TimeoutStopSec is {stop:g} s, and requests may take {drain:g} s to end at a stop",
            f"set TimeoutStopSec={drain + 30:g}",
        )
    if unit.get("OOMPolicy") in ("stop", "kill"):
        yield Finding(
            "service",
            "warning",
            f"OOMPolicy={unit.get('OOMPolicy')}: a worker that the kernel kills for memory takes "
            "the server along",
            "set OOMPolicy=continue",
        )
    locked = unit.get("LimitMEMLOCK")
    if locked.isdecimal() and int(locked) < _LEAST_LOCKED:
        yield Finding(
            "service",
            "warning",
            f"LimitMEMLOCK is {locked} bytes: offloading, which pins memory, may fail",
            "set LimitMEMLOCK=infinity",
        )


def _variables(unit: Unit, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report variables of this shell that the service does not have; values are not told."""
    if unit.get("EnvironmentFiles"):
        return
    given = unit.environment
    names = sorted(name for name in environ if name.startswith(_TELLING) and name not in given)
    if names:
        yield Finding(
            "service",
            "warning",
            f"{', '.join(names)} is set in this shell and not for the service",
            "set it by Environment= or EnvironmentFile= in the unit if the server needs it",
        )


def span(text: str) -> float | None:
    """Return the seconds of a span such as 1min 30s; None if it is infinite or not told."""
    parts = _SPAN.findall(text)
    return sum(float(count) * _UNITS[unit] for count, unit in parts) if parts else None


def _wrong(detail: str, advice: str) -> Finding:
    return Finding("service", "error", detail, f"{advice}; then daemon-reload and restart")
