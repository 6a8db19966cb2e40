"""Compare a pull from a hub on this machine with copying and hashing the same bytes.

    python -m benchmarks.pull [--megabytes 1000] [--files 4] [--rounds 3] [--folder DIR]
                              [--gateway URL --key KEY]

Both read what the page cache has, write to the same disk, hash with SHA-256 and sync; they take
turns. The copy is one loop in one process; the pull goes through HTTP to another process, and ends
with a model in a store. With --gateway, a running server is asked for its health all the while:
its latency beside a pull, which then yields to it as a server's own pulls do, and without one.

Bound: the pull has at least 70 % of the copy's speed. Exit code 1 if not.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
from safetensors.numpy import save_file

from benchmarks.hub_server import REPO
from benchmarks.machine import describe, load_average

_BOUND = 0.7
_CHUNK = 1 << 20
_NICE = 5  #: of the processes that pull for a server
_PULL = (
    "import os, sys; from pathlib import Path; from time import perf_counter\n"
    "os.nice(int(sys.argv[4]))\n"
    "from model_store.hub.pull import HubOptions, PullRequest, pull\n"
    "from model_store.store import ModelStore\n"
    "begun = perf_counter()\n"
    "request = PullRequest(repo=sys.argv[2], hub=HubOptions(sys.argv[3]))\n"
    "pull(ModelStore(Path(sys.argv[1])), request)\n"
    "print(perf_counter() - begun)"
)
_CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, '
    '"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}'
)


def make_model(folder: Path, size: int, files: int) -> None:
    """Write random weights in so many files, and texts beside them."""
    names = [f"model-{number:05}-of-{files:05}.safetensors" for number in range(1, files + 1)]
    listed = {}
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).bytes(size // files)
        tensors = {f"padding.{number}.weight": np.frombuffer(noise, np.uint8)}
        listed.update(dict.fromkeys(tensors, name))
        save_file(tensors, folder / name)
    if files == 1:
        (folder / names[0]).rename(folder / "model.safetensors")
    else:
        index = str({"weight_map": listed}).replace("'", '"')
        (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(_CONFIG)
    (folder / "tokenizer_config.json").write_text("{}")


def copy(source: Path, target: Path) -> float:
    """Copy and hash every file, and sync it; return the seconds."""
    begun = perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as read, (target / path.name).open("wb") as written:
            while chunk := read.read(_CHUNK):
                digest.update(chunk)
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
    return perf_counter() - begun


def pull(root: Path, url: str, nice: int) -> float:
    """Pull in a process of its own; return the seconds without its start."""
    command = [sys.executable, "-c", _PULL, str(root), REPO, url, str(nice)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.hub_server", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


class Probe:
    """Asks a gateway for its health again and again, and keeps how long that took."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"})
        self._stop = threading.Event()
        self.seconds: dict[str, list[float]] = {"alone": [], "beside a pull": []}
        self.state = "alone"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            begun = perf_counter()
            self._client.get("/api/v1/models").raise_for_status()
            self.seconds[self.state].append(perf_counter() - begun)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def lines(self) -> Iterator[str]:
        for state, seconds in self.seconds.items():
            if len(seconds) > 1:
                ends = statistics.quantiles(seconds, n=100)
                yield (
                    f"gateway {state}: p50 {1000 * ends[49]:.1f} ms, p99 {1000 * ends[98]:.1f} ms "
                    f"({len(seconds)} requests)"
                )


def measure(options: argparse.Namespace, folder: Path) -> float:
    """Print the table; return the pull's share of the copy's speed."""
    source = folder / "source"
    source.mkdir()
    size = options.megabytes * 1_000_000
    make_model(source, size, options.files)
    probe = Probe(options.gateway, options.key) if options.gateway else None
    seconds: dict[str, list[float]] = {"copy and hash": [], "pull": []}
    with served(source) as url:
        for _ in range(options.rounds):
            seconds["copy and hash"].append(copy(source, folder / "copy"))
            shutil.rmtree(folder / "copy")
            if probe:
                probe.state = "beside a pull"
            seconds["pull"].append(pull(folder / "store", url, _NICE if probe else 0))
            if probe:
                probe.state = "alone"
            shutil.rmtree(folder / "store")
    if probe:
        probe.end()
    for name, taken in seconds.items():
        best = min(taken)
        rest = ", ".join(f"{each:.2f}" for each in taken)
        write(f"{name:15} {size / best / 1e6:7.0f} MB/s  ({rest} s)")
    for line in probe.lines() if probe else ():
        write(line)
    return min(seconds["copy and hash"]) / min(seconds["pull"])


def write(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; three times the size is needed")
    parser.add_argument("--gateway", help="a running server's address")
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    load = load_average()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        share = measure(options, Path(name))
    write(f"pull / copy and hash: {share:.0%} (bound {_BOUND:.0%}), {options.files} files")
    write(describe(load))
    return 0 if share >= _BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
