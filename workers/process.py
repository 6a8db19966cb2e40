"""The worker process: from its first line to its exit. Runs one engine, knows no socket."""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import msgspec

from workers.codes import DRIVER_STARTED
from workers.confinement import Confinement, NotConfined, confine
from workers.engines.base import Engine, Refused
from workers.engines.registry import engine_info, make_engine
from workers.framing import decode_commands, write_frame
from workers.protocol import (
    Cancel,
    Confined,
    Event,
    Failed,
    Heartbeat,
    Imported,
    Job,
    Load,
    LoadFailed,
    LoadProgress,
    Stop,
)

_PR_SET_PDEATHSIG = 1
_CUDA_NOT_INITIALIZED = 3
_SWITCH_SECONDS = 0.0005
_YIELD = 10  #: niceness: a tenth of the CPU while others want all of it
_OOM_SCORE = 500  #: of 1000; the gateway's is as it was started, usually 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A job as an engine's ``prepare`` has made it."""

    request: Any


_Item = _Prepared | Failed | Cancel | Stop


def worker_main(
    jobs: "Queue[bytes]",
    events: Connection,
    death: Connection,
    output: Connection,
    imports: Sequence[str],
    confinement: Confinement | None = None,
    folder: Path | None = None,
) -> None:
    """Import, say Warm, take a Load, say Ready or LoadFailed, run jobs until Stop."""
    _write_to(output)
    watch = _die_with_parent(death)
    _raise_oom_score()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for module in imports:
        importlib.import_module(module)
    fd = events.fileno()
    write_frame(fd, [Imported()])
    command = decode_commands(jobs.get())[0]
    if not isinstance(command, Load):
        return
    # Rules for files bind the thread that takes them on, and those that it starts afterwards.
    with watch.paused():
        confined = _confine(fd, command, confinement, folder)
    engine = _load(fd, command, confined)
    Loop(engine, jobs, fd, command.heartbeat_seconds).run()
    engine.close()


def _confine(fd: int, spec: Load, confinement: Confinement | None, folder: Path | None) -> Confined:
    if confinement is None or folder is None:
        return Confined()
    try:
        return confine(spec, confinement, str(folder))
    except NotConfined as error:
        write_frame(fd, [LoadFailed(code="MODEL_LOAD_FAILED", message=str(error))])
        sys.exit(1)


def _load(fd: int, spec: Load, confined: Confined) -> Engine:
    if not _choose_cards(spec.visible_devices):
        message = "The worker's libraries started the driver before its cards were chosen."
        write_frame(fd, [LoadFailed(code=DRIVER_STARTED, message=message)])
        sys.exit(1)
    if spec.device != "cuda" and engine_info(spec.engine).low_priority:
        os.nice(_YIELD)
    started = time.monotonic()
    try:
        engine = make_engine(spec.engine)
        ready = engine.load(spec, lambda fraction: write_frame(fd, [LoadProgress(fraction)]))
    except Refused as refused:
        write_frame(fd, [LoadFailed(code=refused.code, message=refused.message)])
        sys.exit(1)
    except BaseException as error:
        # Whatever ends a load, the gateway must hear of it: panics of native tokenizers are
        # BaseExceptions. The traceback goes to stderr with the re-raise.
        write_frame(fd, [LoadFailed(code="MODEL_LOAD_FAILED", message=_summary(error))])
        raise
    seconds = time.monotonic() - started
    held = _held_bytes(engine)
    ready = msgspec.structs.replace(
        ready, load_seconds=seconds, memory_bytes=held, confined=confined
    )
    write_frame(fd, [ready])
    return engine


def _choose_cards(visible_devices: str) -> bool:
    """Let this process see those cards only; "" for none. False if it is too late: the driver
    reads the variable once, when it starts."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == visible_devices:
        return True
    if _driver_has_started():
        return False
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices
    return True


def _driver_has_started() -> bool:
    """True if something in this process has started CUDA's driver. Asking does not start it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is none
        return False
    count = ctypes.c_int()
    return bool(driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_NOT_INITIALIZED)


def _summary(error: BaseException) -> str:
    """One line without the paths that library messages like to hold."""
    return f"The model could not be loaded ({type(error).__name__}); the server's log says why."


class Loop:
    """Takes jobs in, steps the engine, sends out one frame per step and a heartbeat per interval.

    Two threads: the intake blocks on the queue, checks and tokenises; the loop steps. So neither
    a long prompt nor an empty queue holds up running requests.
    """

    def __init__(
        self, engine: Engine, jobs: "Queue[bytes]", events_fd: int, heartbeat_seconds: float
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._fd = events_fd
        self._interval = heartbeat_seconds
        self._wake = threading.Condition()
        self._incoming: list[_Item] = []
        self._stopping = False
        self._steps = 0
        self._next_heartbeat = 0.0

    def run(self) -> None:
        # The threads hand the interpreter over often; the default of 5 ms is a step of its own.
        sys.setswitchinterval(_SWITCH_SECONDS)
        threading.Thread(target=self._intake, name="intake", daemon=True).start()
        while not self._stopping:
            events = self._take()
            if self._engine.in_flight:
                events += self._engine.step()
                self._steps += 1
            events += self._heartbeat()
            if events:
                write_frame(self._fd, events)

    def _intake(self) -> None:
        while True:
            commands = decode_commands(self._jobs.get())
            items = [self._item(command) for command in commands if not isinstance(command, Load)]
            with self._wake:
                self._incoming += items
                self._wake.notify()

    def _item(self, command: Job | Cancel | Stop) -> "_Item":
        if not isinstance(command, Job):
            return command
        try:
            return _Prepared(self._engine.prepare(command))
        except Refused as refused:
            return refused.final(command.id)
        except BaseException as error:  # noqa: BLE001  native tokenizers panic with BaseException
            traceback.print_exception(error)
            text = "The model could not read this request."
            return Failed(id=command.id, code="INFERENCE_FAILED", message=text)

    def _take(self) -> list[Event]:
        """Act on what has come in since the last step; waits while there is nothing to do."""
        with self._wake:
            if not self._incoming and not self._engine.in_flight:
                self._wake.wait(max(0.0, self._next_heartbeat - time.monotonic()))
            items, self._incoming = self._incoming, []
        failures: list[Event] = []
        for item in items:
            match item:
                case _Prepared(request=request):
                    self._engine.submit(request)
                case Failed():
                    failures.append(item)
                case Cancel(id=job_id):
                    self._engine.cancel(job_id)
                case Stop():
                    self._stopping = True
        return failures

    def _heartbeat(self) -> list[Event]:
        now = time.monotonic()
        if now < self._next_heartbeat:
            return []
        self._next_heartbeat = now + self._interval
        return [
            Heartbeat(
                steps=self._steps,
                in_flight=self._engine.in_flight,
                memory_bytes=_held_bytes(self._engine),
            )
        ]


def _held_bytes(engine: Engine) -> int:
    """Memory of its device that the worker holds."""
    held = engine.device_bytes()
    return _resident_bytes() if held is None else held


def _resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell it so."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _write_to(output: Connection) -> None:
    """Standard output and error, also of native code, go to the gateway."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()


def _raise_oom_score() -> None:
    """When the machine runs out of memory, a worker is the lesser loss."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def _die_with_parent(death: Connection) -> "_DeathWatch":
    """Outlive no gateway: by the kernel's signal where there is one, and by the pipe's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return _DeathWatch(death)


class _DeathWatch:
    """A thread that ends the process when the pipe to the gateway has ended."""

    def __init__(self, death: Connection) -> None:
        self._death = death
        self._pause, self._pausing = multiprocessing.Pipe(duplex=False)
        self._start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """End the thread for a while, so that the caller's may be the only one."""
        self._pausing.send_bytes(b"")
        self._thread.join()
        self._pause.recv_bytes()
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="death", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            if self._death not in wait([self._death, self._pause]):
                return
            self._death.recv_bytes()
        os._exit(1)
