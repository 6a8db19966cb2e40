"""Describes the machine in one line, printed under every table: figures mean nothing without it."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "fastapi", "uvicorn")
_BUSY = 0.5  #: a load average from which on the figures are not to be trusted


def describe(load_before: float) -> str:
    """Describe the machine in one line. ``load_before``: the load average of the last minute, taken
    before the benchmark began."""
    facts = [datetime.now(UTC).date().isoformat(), f"{os.cpu_count()} cores of {_cpu_model()}"]
    facts.append(f"Python {platform.python_version()}")
    facts += [f"{name} {version(name)}" for name in _PACKAGES]
    facts.append(f"load average before: {load_before:.2f}")
    if load_before > _BUSY:
        facts.append("THE MACHINE WAS BUSY, DO NOT TRUST THIS")
    return ", ".join(facts)


def load_average() -> float:
    return os.getloadavg()[0]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()
