"""Starts worker processes. The seam for another way to start them (on a cluster, say)."""

import multiprocessing
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Protocol

from workers.confinement import Confinement
from workers.folders import WorkFolders
from workers.process import worker_main

_REAP_SECONDS = 1.0
#: What a worker may inherit. Everything else stays behind: keys, tokens, the operator's secrets.
_INHERITED = {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
_INHERITED |= {"LD_PRELOAD"}  # how another allocator is brought in
_INHERITED |= {"CC", "CXX", "XDG_CACHE_HOME"}  # what kernels are compiled by, and kept in
_INHERITED_PREFIXES: tuple[str, ...] = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "PYTHON",
    "OMP_",
    "MKL_",
    "KMP_",
    "TORCH",
)
_INHERITED_PREFIXES += ("PYTORCH_", "TRITON_", "CUBLAS_", "CUDNN_", "NCCL_", "MALLOC_")
#: Workers load from a local folder only; the libraries read most of these at import.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # NumPy's own threads: nobody here multiplies matrices by it, and they begin at the import,
    # before a worker is confined.
    "OPENBLAS_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
#: The driver's library counts cards in this order; CUDA by itself takes the fastest first.
_CARD_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
#: Whether there is a card is asked of NVML. CUDA's own answer starts the driver, which reads
#: CUDA_VISIBLE_DEVICES there and then: a spare worker could not choose its card any more.
_CARD_CHECK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: Free memory of the allocator is joined, so that a larger request fits where smaller ones were.
_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
_ALLOCATOR_NAMES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}


class Handle(Protocol):
    """A running worker process, as much of it as the pool needs."""

    @property
    def pid(self) -> int: ...
    @property
    def folder(self) -> Path | None:
        """The only folder that it writes to; None if it has none of its own."""
        ...

    @property
    def events_fd(self) -> int:
        """The non-blocking reading end of its event pipe."""
        ...

    @property
    def output_fd(self) -> int:
        """The non-blocking reading end of what it writes to its standard streams."""
        ...

    @property
    def sentinel(self) -> int:
        """Becomes readable when the process has ended."""
        ...

    def send(self, command: bytes) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def reap(self) -> int | None:
        """The exit code (negative: the signal), or None while it runs."""
        ...

    def close(self) -> None:
        """Free the pipes, the queue and the process record; the process has ended."""
        ...


class Launcher(Protocol):
    def launch(self, name: str, imports: Sequence[str], visible_devices: str | None) -> Handle:
        """Start a process that imports those modules, says Warm and waits for its Load.

        ``visible_devices`` is its CUDA_VISIBLE_DEVICES, in force before the first import; None
        for a spare, whose cards are chosen with its Load.
        """
        ...


class SpawnLauncher:
    """Workers as child processes of this one, by ``multiprocessing``'s spawn.

    With ``folders`` each has one of its own; with a ``confinement`` it can write nowhere else.
    """

    def __init__(
        self, folders: WorkFolders | None = None, confinement: Confinement | None = None
    ) -> None:
        self._folders = folders
        self._confinement = confinement

    def launch(
        self, name: str, imports: Sequence[str], visible_devices: str | None
    ) -> "SpawnedWorker":
        context = multiprocessing.get_context("spawn")
        folder = self._folders.make() if self._folders is not None else None
        # A queue and pipes of its own for each process: those of a killed one may stay locked.
        jobs: Queue[bytes] = context.Queue()
        events, events_child = context.Pipe(duplex=False)
        death_child, death = context.Pipe(duplex=False)
        output, output_child = context.Pipe(duplex=False)
        process = context.Process(
            target=worker_main,
            args=(
                *(jobs, events_child, death_child, output_child, tuple(imports)),
                *(self._confinement, folder),
            ),
            name=f"bitinglip {name}",
            daemon=True,
        )
        environ = worker_environment(dict(os.environ), platform.release())
        if visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible_devices
        if folder is not None:
            environ["TMPDIR"] = str(folder)
        with _environment(environ), _interrupts_held():
            process.start()
        _close_reader(jobs)
        events_child.close()
        death_child.close()
        output_child.close()
        os.set_blocking(events.fileno(), False)
        os.set_blocking(output.fileno(), False)
        return SpawnedWorker(process, jobs, events, death, output, self._folders, folder)


class SpawnedWorker:
    def __init__(
        self,
        process: SpawnProcess,
        jobs: "Queue[bytes]",
        events: Connection,
        death: Connection,
        output: Connection,
        folders: WorkFolders | None,
        folder: Path | None,
    ) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.events_fd = events.fileno()
        self.output_fd = output.fileno()
        self._pidfd = _pidfd(process.pid)
        self.sentinel = process.sentinel if self._pidfd is None else self._pidfd
        self._process = process
        self._jobs = jobs
        self._events = events
        self._death = death
        self._output = output
        self._folders = folders
        self.folder = folder

    def send(self, command: bytes) -> None:
        self._jobs.put(command)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> int | None:
        # Where there is no pidfd, the sentinel comes before the process can be waited for.
        self._process.join(_REAP_SECONDS)
        return self._process.exitcode

    def close(self) -> None:
        self._jobs.cancel_join_thread()
        self._jobs.close()
        self._events.close()
        self._death.close()
        self._output.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        if self.reap() is not None:
            self._process.close()
        if self._folders is not None and self.folder is not None:
            self._folders.remove(self.folder)


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process can be waited for; None where the
    system has none.

    multiprocessing's own sentinel is one of the child's files. The kernel closes those before it
    frees a card's memory, so a wait that begins then stops the event loop for seconds.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _close_reader(jobs: "Queue[bytes]") -> None:
    """Close our copy of the queue's reading end: with it open, the queue's thread would write for
    ever to a worker that died with a full pipe. Without it, the write ends, and the thread too.
    """
    jobs._reader.close()  # type: ignore[attr-defined]
    jobs._ignore_epipe = True  # type: ignore[attr-defined]


def worker_environment(environ: dict[str, str], kernel: str) -> dict[str, str]:
    """Give the environment of a worker: what it needs to run, and nothing that is secret.

    ``kernel`` is the kernel's release: under WSL the driver has no expandable segments.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    chosen = not _ALLOCATOR_NAMES.isdisjoint(kept) or "microsoft" in kernel.lower()
    allocator = {} if chosen else _ALLOCATOR
    return _CARD_CHECK | allocator | kept | _OFFLINE | _CARD_ORDER


@contextmanager
def _environment(environ: dict[str, str]) -> Iterator[None]:
    """Run with another environment: spawn has no parameter for its child's."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start the child with SIGINT blocked: a Ctrl-C must not end it before it ignores them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
