"""Runs the worker process from its first line to its exit: one engine, and no socket."""

import contextlib
import ctypes
import importlib
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from workers import lent_memory
from workers.codes import DRIVER_STARTED, LoadCode
from workers.confinement import NotConfined, confine
from workers.engines import activity
from workers.engines.base import Answered, Engine, Refused
from workers.engines.registry import engine_info, make_engine
from workers.faults import FAULTS, classify, sentence
from workers.framing import read_commands, write_events
from workers.heap import HeapTrim
from workers.protocol import (
    Broken,
    Cancel,
    Command,
    Confined,
    Event,
    Failed,
    Final,
    Heartbeat,
    Import,
    Imported,
    Job,
    Load,
    LoadFailed,
    LoadProgress,
    Stop,
)

_PR_SET_PDEATHSIG = 1
_CUDA_NOT_INITIALIZED = 3
_BLOCK = 512  #: bytes: what the system counts reads in
_MOST_NAME = 256  #: characters
_SWITCH_SECONDS = 0.0005
_YIELD = 10  #: niceness: a tenth of the CPU while others want all of it
_OOM_SCORE = 500  #: of 1000; the gateway's is as it was started, usually 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Holds a job as an engine's ``prepare`` has made it."""

    request: Any


#: an error is the intake's own: it ends the loop
_Item = _Prepared | Final | Cancel | Stop | BaseException


def worker_main(jobs: int, events: int, death: int) -> None:
    """Import, say Imported, take a Load, say Ready or LoadFailed, run jobs until Stop.

    The descriptors are ends of pipes: commands come in by ``jobs``, events go out by ``events``,
    and ``death`` ends with the gateway. Standard output and error go to the gateway's log.
    """
    for fd in (jobs, events, death):
        os.set_inheritable(fd, False)
    first = _first(read_commands(jobs))
    if not isinstance(first, Import):
        return
    if first.lending is not None:
        os.set_inheritable(first.lending, False)
    death_watch = _die_with_gateway(first.gateway, death)
    _raise_oom_score()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in first.modules:
        importlib.import_module(module)
    write_events(events, [Imported()])
    command = _first(read_commands(jobs))
    if not isinstance(command, Load):
        return
    lent_memory.receive(first.lending)
    # Rules for files bind the thread that takes them on, and those that it starts afterwards.
    with death_watch.paused():
        confined = _confine(events, command, first)
    activity.connect(lambda working: _tell(events, working))
    engine = _load(events, command, confined)
    try:
        Loop(engine, jobs, events, command.heartbeat_seconds).run()
        engine.close()
    except BaseException as error:  # noqa: BLE001  native libraries panic with BaseException
        fault = classify(error)
        _end_at_once(
            events,
            Broken(fault=fault.name if fault else None, error=type(error).__name__[:_MOST_NAME]),
            error,
        )


def _first(commands: Sequence[Command]) -> Command | None:
    return commands[0] if commands else None


def _confine(fd: int, spec: Load, first: Import) -> Confined:
    if first.confinement is None:
        return Confined()
    try:
        return confine(spec, first.confinement, first.folder)
    except NotConfined as error:
        write_events(fd, [LoadFailed(code="MODEL_LOAD_FAILED", message=str(error))])
        sys.exit(1)


def _load(fd: int, spec: Load, confined: Confined) -> Engine:
    if not _choose_cards(spec.visible_devices):
        message = "The worker's libraries started the driver before its cards were chosen."
        _end_at_once(fd, LoadFailed(code=DRIVER_STARTED, message=message))
    if spec.device != "cuda" and engine_info(spec.engine).low_priority:
        os.nice(_YIELD)
    started, read = time.monotonic(), storage_bytes()
    try:
        engine = make_engine(spec.engine)
        ready = engine.load(spec, lambda fraction: _tell(fd, LoadProgress(fraction)))
    except Refused as refused:
        failed = LoadFailed(code=refused.code, message=refused.message, fault=refused.fault)
        _end_at_once(fd, failed)
    except BaseException as error:  # noqa: BLE001
        # Whatever ends a load, the gateway must hear of it: panics of native tokenizers are
        # BaseExceptions.
        _end_at_once(fd, _load_failed(error), error)
    seconds = time.monotonic() - started
    held = _held_bytes(engine)
    ready = msgspec.structs.replace(
        ready,
        load_seconds=seconds,
        storage_bytes=storage_bytes() - read,
        memory_bytes=held,
        confined=confined,
    )
    write_events(fd, [ready])
    return engine


def _tell(fd: int, event: Event) -> None:
    write_events(fd, [event])


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


def _load_failed(error: BaseException) -> LoadFailed:
    """Say in one line why a load failed, without the paths that library messages like to hold."""
    if (fault := classify(error)) is None:
        text = f"The model could not be loaded ({type(error).__name__}); the server's log says why."
        return LoadFailed(code="MODEL_LOAD_FAILED", message=text)
    code: LoadCode = "OUT_OF_MEMORY" if fault.blame == "memory" else "MODEL_LOAD_FAILED"
    text = f"The model could not be loaded: its worker {fault.cause}. {sentence(error, fault)}"
    return LoadFailed(code=code, message=text, fault=fault.name)


def _end_at_once(
    fd: int, last_word: Broken | LoadFailed, error: BaseException | None = None
) -> NoReturn:
    """Tell why the process ends, and end it without any clean-up: what would touch the card after
    an error of CUDA hangs or fails again."""
    with contextlib.suppress(Exception):
        if error is not None:
            traceback.print_exception(error)
        if last_word.fault is not None:
            fault = FAULTS[last_word.fault]
            sys.stderr.write(f"fault of the class '{fault.name}': {fault.sentence}\n")
        sys.stdout.flush()
        sys.stderr.flush()
    with contextlib.suppress(Exception):
        write_events(fd, [last_word])
    os._exit(1)


class Loop:
    """Takes jobs in, steps the engine, writes each step's events and a heartbeat per interval.

    Two threads: the intake blocks on the pipe, checks and tokenises; the loop steps. So neither
    a long prompt nor an empty pipe holds up running requests.
    """

    def __init__(
        self, engine: Engine, jobs_fd: int, events_fd: int, heartbeat_seconds: float
    ) -> None:
        self._engine = engine
        self._jobs_fd = jobs_fd
        self._fd = events_fd
        self._interval = heartbeat_seconds
        self._wake = threading.Condition()
        self._incoming: list[_Item] = []
        self._stopping = False
        self._steps = 0
        self._next_heartbeat = 0.0
        self._heap = HeapTrim()

    def run(self) -> None:
        # The threads hand the interpreter over often; the default of 5 ms is a step of its own.
        sys.setswitchinterval(_SWITCH_SECONDS)
        threading.Thread(target=self._intake, name="intake", daemon=True).start()
        while not self._stopping:
            events, steps = self._take(), self._steps
            if self._engine.in_flight:
                events += self._engine.step()
                self._steps += 1
            events += self._heartbeat()
            if events:
                for job_id in write_events(self._fd, events):
                    self._engine.cancel(job_id)  # its failure is told
            self._heap.tick(worked=self._steps > steps, idle=not self._engine.in_flight)

    def _intake(self) -> None:
        try:
            while commands := read_commands(self._jobs_fd):
                self._hand_over(
                    [
                        self._item(command)
                        for command in commands
                        if not isinstance(command, Import | Load)
                    ]
                )
        except BaseException as error:  # noqa: BLE001  a worker that hears nothing must not stay
            self._hand_over([error])

    def _hand_over(self, items: "list[_Item]") -> None:
        with self._wake:
            self._incoming += items
            self._wake.notify()

    def _item(self, command: Job | Cancel | Stop) -> "_Item":
        if not isinstance(command, Job):
            return command
        try:
            return _Prepared(self._engine.prepare(command))
        except Answered as answered:
            return answered.final
        except Refused as refused:
            return refused.final(command.id)
        except BaseException as error:  # noqa: BLE001  native tokenizers panic with BaseException
            sys.stderr.write(f"request {command.id}, trace {command.trace}:\n")
            traceback.print_exception(error)
            fault = classify(error)
            if fault is not None and fault.blame == "memory":
                text = "The machine ran out of memory on this request."
                return Failed(id=command.id, code="OUT_OF_MEMORY", message=text)
            text = "The model could not read this request."
            return Failed(id=command.id, code="INFERENCE_FAILED", message=text)

    def _take(self) -> list[Event]:
        """Act on what has come in since the last step; waits while there is nothing to do.

        Raises what has ended the intake.
        """
        with self._wake:
            if not self._incoming and not self._engine.in_flight:
                self._wake.wait(max(0.0, self._next_heartbeat - time.monotonic()))
            items, self._incoming = self._incoming, []
        answered: list[Event] = []
        for item in items:
            match item:
                case _Prepared(request=request):
                    self._engine.submit(request)
                case Cancel(id=job_id):
                    self._engine.cancel(job_id)
                case Stop():
                    self._stopping = True
                case BaseException():
                    raise item
                case _:
                    answered.append(item)
        return answered

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
    """Return the bytes of its device that the worker holds."""
    held = engine.device_bytes()
    return _resident_bytes() if held is None else held


def _resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does
    not tell it so."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def storage_bytes(who: int = resource.RUSAGE_SELF) -> int:
    """Return the bytes that this process has read from storage so far, by whatever way."""
    return resource.getrusage(who).ru_inblock * _BLOCK


def _raise_oom_score() -> None:
    """Have the worker killed first when the machine runs out of memory: it is the lesser loss."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def _die_with_gateway(gateway: int, death: int) -> "_DeathWatch":
    """Outlive no gateway: by the kernel's signal where there is one, and by the pipe's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != gateway:  # it died before the signal was asked for
            os._exit(1)
    return _DeathWatch(death)


class _DeathWatch:
    """Ends the process when the pipe to the gateway has ended, from a thread of its own."""

    def __init__(self, death: int) -> None:
        self._death = death
        self._paused, self._pause = os.pipe()
        self._start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """End the thread for a while, so that the caller's may be the only one."""
        os.write(self._pause, b"x")
        self._thread.join()
        os.read(self._paused, 1)
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="death", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        poll = select.poll()
        for fd in (self._death, self._paused):
            poll.register(fd, select.POLLIN)
        if all(fd != self._death for fd, _ in poll.poll()):
            return
        with contextlib.suppress(OSError):  # confined, it may signal itself only
            if os.getpgrp() == os.getpid():
                os.killpg(os.getpid(), signal.SIGKILL)  # and all that it has started
        os._exit(1)
