"""Measures loads: how long two models take to change places, beside reading the file of one.

    python -m benchmarks.loading [--shape gb] [--rounds 3] [--set models.a.quantization=int8]...

A server has two random Llamas of one shape, a and b, in bfloat16. Each round unloads the one that
is loaded and loads the other: with its file in the system's cache, and once more without it
(``cold``). Then it asks for one token, and for a few more of the same length. Beside it stands what
reading the file takes in one thread. ``steps`` are the fractions that a load told while it ran.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx

from benchmarks.machine import describe, load_average
from benchmarks.random_llama import SHAPES, make_model
from benchmarks.servers import BitingLip, import_model

_PIECE = 16 << 20
_LATER = 5  #: requests that the first one is compared with
_LOOK = 0.05  #: seconds between two looks at a load's progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gb")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as folder:
        work = Path(folder)
        made = make_model(work / "made", asked.shape)
        for name in ("a", "b"):
            import_model(work, made, name)
        shutil.rmtree(made)
        files = sorted((work / "home" / "models").rglob("*.safetensors"))
        size = files[0].stat().st_size
        print(f"{asked.shape}, {size / 1e9:.2f} GB, medians of {asked.rounds} rounds")
        with BitingLip(work, *asked.sets) as server:
            _rounds(server, files, size, asked.rounds)
    print(f"\n{describe(load)}")


def _rounds(server: BitingLip, files: list[Path], size: int, rounds: int) -> None:
    client = httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=600
    )
    with client:
        _load(client, "a")
        names = ["b", "a"] * rounds
        for cold in (False, True):
            read, swaps, steps, firsts, later = [], [], [], [], []
            for now, before in zip(names, names[1:] + names[:1], strict=True):
                server.settle()
                if cold:
                    _forget(files)
                read.append(_read(files[0]))
                if cold:
                    _forget(files)
                began = time.perf_counter()
                client.post(f"/api/v1/models/{before}/unload").raise_for_status()
                steps.append(_load(client, now))
                swaps.append(time.perf_counter() - began)
                firsts.append(_token(client, now))
                later.append(statistics.median(_token(client, now) for _ in range(_LATER)))
            _print("cold" if cold else "cached", read, swaps, size)
            first, usual = statistics.median(firsts), statistics.median(later)
            print(f"        steps told {statistics.median(steps):.0f}")
            print(f"        first token {1000 * first:.0f} ms, later ones {1000 * usual:.0f} ms")


def _print(kind: str, read: list[float], swaps: list[float], size: int) -> None:
    reading, swap = statistics.median(read), statistics.median(swaps)
    print(
        f"{kind:7} read {reading:6.2f} s ({size / reading / 1e9:5.2f} GB/s)   swap {swap:6.2f} s "
        f"({size / swap / 1e9:5.2f} GB/s), {swap / reading:5.2f} times the read"
    )


def _load(client: httpx.Client, name: str) -> int:
    """Load a model; return how many different fractions its load told."""
    told: set[float] = set()
    ended = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
            while not ended.wait(_LOOK):
                progress = other.get(f"/api/v1/models/{name}").json().get("progress")
                told.update([progress] if progress else [])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        client.post(f"/api/v1/models/{name}/load").raise_for_status()
    finally:
        ended.set()
        thread.join()
    return len(told)


def _token(client: httpx.Client, name: str) -> float:
    """Return the seconds of one token of a prompt that was not sent before."""
    prompt = f"{time.monotonic_ns()} is a number that stands in front of some more words"
    began = time.perf_counter()
    body = {"model": name, "prompt": prompt, "max_tokens": 1}
    client.post("/v1/completions", json=body).raise_for_status()
    return time.perf_counter() - began


def _read(path: Path) -> float:
    """Return the seconds that reading a file in sequence takes."""
    buffer = bytearray(_PIECE)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def _forget(files: list[Path]) -> None:
    """Take files out of the system's cache, as far as no process has them mapped."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


if __name__ == "__main__":
    main()
