"""Confines a worker: what it gives up before it opens a model, so that a hole in a library that
reads pictures, sounds or weights is not a hole in the server.

Taken one by one, as far as the kernel has them; what is left out is said, never passed over.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from workers.confinement import landlock, limits, paths, seccomp
from workers.confinement.landlock import OWN, READ, Access, Rule
from workers.protocol import Confined, Confinement, ConfineMode, Load

_THREAD_SECONDS = 0.2
_CUDA_UNTRIED = "not tried on a card yet; workers.confine: require turns it on"
_UNTRIED_ON_CARDS = ("file_size", "capabilities", "files", "system_calls")
_COMPILER = "image.compile runs a compiler"


class NotConfined(Exception):
    """The settings require what this machine does not have; the message says what."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Describes what this machine has for confinement."""

    landlock: int  #: the version of Landlock, 0 for none
    seccomp: bool

    @classmethod
    def find(cls) -> "Kernel":
        return cls(landlock.abi(), seccomp.is_available())

    def lacks(self) -> dict[str, str]:
        """Return the measures that cannot be taken here, with the reasons."""
        found = {}
        if sys.platform != "linux":
            return {"everything": "workers are confined on Linux only"}
        if not self.landlock:
            found["files"] = "this kernel has no Landlock, or it is switched off"
        elif self.landlock < landlock.TRUNCATE_ABI:
            found["truncation"] = "needs Landlock 3 (Linux 6.2)"
        if not self.seccomp:
            found["system_calls"] = "this kernel, or its architecture here, has no filter of them"
        return found


@dataclass(slots=True)
class _Report:
    measures: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    waived: dict[str, str] = field(default_factory=dict)  #: left out by another setting

    def take(self, measure: str, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.missing[measure] = error.strerror or str(error)
        else:
            self.measures.append(measure)

    def checked(self, mode: ConfineMode) -> Confined:
        """Return the message. Raises NotConfined if all is required and something is missing."""
        if mode == "require" and self.missing:
            missing = "; ".join(f"{name} ({why})" for name, why in self.missing.items())
            raise NotConfined(f"workers.confine is 'require', and this machine lacks: {missing}.")
        left_out = {**self.missing, **self.waived}
        return Confined(
            measures=tuple(self.measures),
            missing=tuple(f"{name}: {why}" for name, why in left_out.items()),
        )


def confine(spec: Load, confinement: Confinement, folder: str | None) -> Confined:
    """Confine this process to a model and to the folder of its own, if it has one, for good.

    To be called while the caller's thread is the only one. Raises NotConfined.
    """
    if runs_programs(spec):
        with contextlib.suppress(OSError):  # it compiles all the same
            paths.choose_caches(paths.COMPILER_CACHES, confinement.caches, spec.path, folder)
    if spec.device == "cuda":
        with contextlib.suppress(OSError):  # each process builds the kernels again
            paths.choose_caches(paths.DRIVER_CACHES, confinement.caches, spec.path, folder)
            os.environ.setdefault(paths.DRIVER_CACHE_SIZE, paths.DRIVER_CACHE_BYTES)
    if confinement.mode == "off":
        return Confined()
    kernel = Kernel.find()
    report = _Report()
    _take_harmless(report)
    if spec.device == "cuda" and confinement.mode == "auto":
        report.missing |= dict.fromkeys(_UNTRIED_ON_CARDS, _CUDA_UNTRIED)
    else:
        report.missing |= kernel.lacks()
        _take_all(report, kernel, spec, confinement, folder)
    return report.checked(confinement.mode)


def confine_reader(source: str, folder: str, mode: ConfineMode) -> Confined:
    """Confine this process to reading one file and writing into one folder. Raises NotConfined.

    To be called before anything starts a thread.
    """
    if mode == "off":
        return Confined()
    kernel = Kernel.find()
    report = _Report(missing=kernel.lacks())
    _take_harmless(report)
    report.take("capabilities", limits.drop_capabilities)
    files = (Rule(source, READ), Rule(folder, OWN))
    _take_landlock(report, kernel, chain(paths.system([], programs=False), files))
    _take_seccomp(report, kernel, programs=False, unix_sockets=False)
    return report.checked(mode)


def _take_harmless(report: _Report) -> None:
    """Take what can hurt no library."""
    report.take("no_new_privs", limits.no_new_privileges)
    report.take("no_core", limits.no_core_dumps)
    report.take("not_dumpable", limits.not_dumpable)


def _take_all(
    report: _Report, kernel: Kernel, spec: Load, confinement: Confinement, folder: str | None
) -> None:
    report.take("file_size", limits.bounded_files)
    if confinement.memory_bytes is not None and spec.device != "cuda":
        size = confinement.memory_bytes
        report.take("memory", lambda: limits.bounded_memory(size))
    report.take("capabilities", limits.drop_capabilities)
    _take_landlock(report, kernel, rules(spec, confinement, folder))
    _take_seccomp(report, kernel, programs=runs_programs(spec), unix_sockets=spec.device == "cuda")


def rules(spec: Load, confinement: Confinement, folder: str | None) -> Iterator[Rule]:
    """Yield the rules for the files of a worker that runs a model."""
    yield from paths.system(confinement.hidden, programs=runs_programs(spec))
    if spec.device == "cuda":
        yield from paths.cuda()
    yield from paths.model(model_files(spec))
    yield Rule(confinement.inputs, Access.READ_FILE)
    if folder is not None:
        yield Rule(folder, OWN)
    for cache in paths.caches():
        yield Rule(cache, OWN)


def runs_programs(spec: Load) -> bool:
    """True for a worker that must be able to start programs: a compiler."""
    return spec.image is not None and spec.image.compile


def model_files(spec: Load) -> list[str]:
    """Return the folders and files that a load names."""
    named = [spec.path, spec.adapter or ""]
    if spec.text is not None:
        named.append(spec.text.lora_folder)
    if spec.speech is not None:
        named += [spec.speech.vocoder or "", *spec.speech.voices.values()]
    if spec.image is not None:
        named += spec.image.loras.values()
    return [path for path in named if path]


def _take_landlock(report: _Report, kernel: Kernel, wanted: Iterable[Rule]) -> None:
    if not kernel.landlock:
        return
    if threads := _other_threads():
        report.missing["threads"] = f"{threads} that libraries began are not bound by file rules"
    elif threads is None:
        report.missing["threads"] = (
            "/proc cannot be read, so it is not known whether there are more"
        )
    report.take("files", lambda: landlock.restrict(wanted, kernel.landlock))


def _other_threads() -> int | None:
    """Count the threads beside the caller's; None where that cannot be known.

    One that was joined is there for a moment longer.
    """
    end = time.monotonic() + _THREAD_SECONDS
    try:
        while (others := len(os.listdir("/proc/self/task")) - 1) and time.monotonic() < end:
            time.sleep(0.001)
    except OSError:
        return None
    return others


def _take_seccomp(report: _Report, kernel: Kernel, *, programs: bool, unix_sockets: bool) -> None:
    if not kernel.seccomp:
        return
    report.take(
        "system_calls", lambda: seccomp.install(programs=programs, unix_sockets=unix_sockets)
    )
    if programs:
        report.waived["programs"] = _COMPILER
        if kernel.landlock < landlock.SCOPES_ABI:
            report.missing["signals"] = "needs Landlock 6 (Linux 6.12) beside a compiler"
