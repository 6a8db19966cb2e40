"""Checks what this machine has to confine workers with, beside what the settings ask for."""

from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Settings
    from workers.confinement import Kernel

_ADVICE = "use Linux 6.2 or newer with Landlock and seccomp switched on"


def confinement(settings: "Settings") -> Finding:
    from workers.confinement import Kernel

    return judge(settings.workers.confine, Kernel.find())


def judge(mode: str, kernel: "Kernel") -> Finding:
    """Compare what is asked for with what there is."""
    if mode == "off":
        detail = "off: workers may do what the server's user may"
        return Finding("confinement", "warning", detail, "set workers.confine to auto")
    if lacks := kernel.lacks():
        detail = f"{mode}, without " + "; ".join(f"{name}: {why}" for name, why in lacks.items())
        return Finding("confinement", "error" if mode == "require" else "warning", detail, _ADVICE)
    cards = " (on cards only with require)" if mode == "auto" else ""
    detail = f"{mode}: Landlock {kernel.landlock} and a filter of system calls{cards}"
    return Finding("confinement", "ok", detail)
