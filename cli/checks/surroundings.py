"""Checks what around the server slows or breaks models: storage, foreign libraries, a compiler."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Settings

_DESCRIPTIONS = ("etc/cdi", "var/run/cdi")
_DRIVER_LIBRARY = re.compile(r"/libcuda\.so\.(\d+(?:\.\d+)+)")
#: libraries that torch's wheels bring in the version that they were built with
_OF_THE_WHEEL = ("libcudnn", "libcublas", "libnccl", "libcudart", "libcusparse", "libnvrtc")


def every_surrounding(settings: "Settings", models: Path) -> Iterator[Finding]:
    import os

    yield from storage(models)
    yield from descriptions()
    yield from libraries(os.environ)
    yield from compilers(settings, os.environ)


def storage(models: Path, root: Path = Path("/")) -> Iterator[Finding]:
    """Report a folder of models on storage that is read slowly, or keeps equal files twice."""
    from model_store.file_systems import slow_storage, without_links

    if (why := slow_storage(models, root)) is not None:
        yield Finding(
            "storage",
            "warning",
            f"{models} is on {why}: loading a model takes many times as long as from a local SSD",
            "move the home to a local SSD with --home, or keep models loaded (models.<name>.pin)",
        )
    if (kind := without_links(models, root)) is not None:
        yield Finding(
            "storage",
            "warning",
            f"{models} is on a file system without hard links ({kind}): models and revisions with "
            "equal files do not share them, and an import copies",
            "where room is short, move the home with --home to a disk with ext4, XFS or the like",
        )


def descriptions(root: Path = Path("/")) -> Iterator[Finding]:
    """Report files by which containers are given a card (CDI) that are of another driver.

    They name the driver's libraries with their version, and are written before an update.
    """
    from workers.devices.surroundings import Surroundings, text

    loaded = Surroundings(root).module_version()
    if loaded is None:
        return
    for folder in _DESCRIPTIONS:
        for path in sorted((root / folder).glob("*")):
            versions = set(_DRIVER_LIBRARY.findall(text(path)))
            if versions and loaded not in versions:
                shown = Path("/") / path.relative_to(root)
                yield Finding(
                    "cdi",
                    "warning",
                    f"{shown} gives containers the libraries of driver {min(versions)}, and the "
                    f"kernel runs {loaded}: no container gets a card",
                    f"sudo nvidia-ctk cdi generate --output={shown}",
                )


def libraries(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report libraries of CUDA from elsewhere that come before those that torch brings."""
    for variable in ("LD_LIBRARY_PATH", "LD_PRELOAD"):
        for part in environ.get(variable, "").replace(" ", ":").split(":"):
            names = _foreign(Path(part)) if part else []
            if names:
                yield Finding(
                    "libraries",
                    "warning",
                    f"{variable} names {part}, so that workers load {', '.join(names)} from there "
                    "and not the one that torch was built with: models may fail or crash",
                    f"take it out of {variable} for the server",
                )


def _foreign(path: Path) -> list[str]:
    """Return the libraries of CUDA in a folder, or that a file is one, outside of Python."""
    if "site-packages" in path.parts:
        return []
    files = path.iterdir() if path.is_dir() else [path]
    try:
        names = {each.name.partition(".so")[0] for each in files if ".so" in each.name}
    except OSError:
        return []
    return sorted(name for name in names if name in _OF_THE_WHEEL)


def compilers(settings: "Settings", environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report what models with ``image.compile`` lack; the load would be refused."""
    from workers.engines.image.compiler import missing_for_compile

    names = [name for name, own in settings.models.items() if own.image.compile]
    if not names:
        return
    on_cpu = all(settings.models[name].device == "cpu" for name in names)
    if (why := missing_for_compile("cpu" if on_cpu else "cuda", environ)) is not None:
        what, _, advice = why.rstrip(".").rpartition(": ")
        yield Finding("compiler", "error", f"{', '.join(names)}: {what}", advice)
