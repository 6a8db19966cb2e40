"""Starts worker processes. The seam for another way to start them (on a cluster, say)."""

import contextlib
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from workers.environment import ignored_variables, worker_environment
from workers.exit_watch import ExitWatch, bytes_read, has_ended, is_stopped
from workers.faults import Fault
from workers.folders import WorkFolders
from workers.framing import encode_commands
from workers.job_pipe import JobPipe
from workers.kept_memory import KeptMemory, Piece
from workers.protocol import Command, Confinement, Import, Load

log = logging.getLogger(__name__)

_ENTRY = "workers.process:worker_main"
#: The whole program of a worker: the gateway's import path, then the entry and its descriptors.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import {name}; {name}{descriptors!r}"


@dataclass(frozen=True, slots=True)
class End:
    """Tells how a process has ended that is not a child of this one."""

    code: int | None  #: its exit code, negative for a signal
    cause: str | None = None  #: as in "The worker ..."; None: as the code says
    fault: Fault | None = None


class Handle(Protocol):
    """Handles a running worker process, as much of it as the pool needs. No call blocks."""

    @property
    def pid(self) -> int: ...
    @property
    def folder(self) -> Path | None:
        """Return the only folder that it writes to; None if it has none of its own."""
        ...

    @property
    def events_fd(self) -> int:
        """Return the non-blocking reading end of its event pipe."""
        ...

    @property
    def output_fd(self) -> int:
        """Return the non-blocking reading end of what it writes to its standard streams."""
        ...

    def bytes_read(self) -> int | None:
        """Return the bytes that it has read from files so far; None where the
        system does not tell."""
        ...

    def is_stopped(self) -> bool:
        """Return True if a signal has stopped it; False where the system does not tell."""
        ...

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Have ``on_exit`` called on the event loop once the process has ended."""
        ...

    def send(self, commands: Sequence[Command]) -> None:
        """Send it commands, in their order; does nothing if it has ended."""
        ...

    def lend(self, spec: Load) -> None:
        """Lend it the memory that a load asks for, which is sent next."""
        ...

    def kill(self) -> None:
        """End it and all that it has started; does nothing if it has ended."""
        ...

    def reap(self) -> int | None:
        """End what it has started and left behind; return its exit code (negative: the signal), or
        None while it runs."""
        ...

    def close(self) -> None:
        """Free the pipes; the process has ended."""
        ...


class Launcher(Protocol):
    def launch(self, name: str, imports: Sequence[str], visible_devices: str | None) -> Handle:
        """Start a process that imports those modules, says Warm and waits for its Load.

        ``visible_devices`` is its CUDA_VISIBLE_DEVICES, in force before the first import; None
        for a spare, whose cards are chosen with its Load. Raises OSError.
        """
        ...


class SpawnLauncher:
    """Starts workers as child processes of this one: fresh interpreters, each in a session of its
    own.

    ``multiprocessing`` is not used. Its spawn takes the child's environment from this process's,
    which other threads read; it flushes this process's standard streams, which may be closed; and
    it shares semaphores with the child. A session of its own is also a process group of its own,
    so whatever a worker starts can be ended with it.
    """

    def __init__(
        self,
        entry: str = _ENTRY,
        *,
        folders: WorkFolders | None = None,
        confinement: Confinement | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        kept: KeptMemory | None = None,
    ) -> None:
        """``entry``: "module:function" that a worker runs, called with its descriptors.

        With ``folders`` each has one of its own; with a ``confinement`` it can write nowhere else.
        ``environ``: variables that workers get unless the operator's environment has them.
        ``kept``: memory that outlives them.
        """
        self.kept = kept
        self._environ = environ
        self._module, _, self._function = entry.partition(":")
        self._folders = folders
        self._confinement = confinement
        self._noticed = False  #: the operator was told which of his variables have no effect

    def launch(
        self, name: str, imports: Sequence[str], visible_devices: str | None
    ) -> "SpawnedWorker":
        environ = {**self._environ, **worker_environment(os.environ, platform.release())}
        self._notice_ignored()
        if visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible_devices
        _fill_standard_streams()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            folder = self._make_folder(name)
            if self._folders is not None and folder is not None:
                ours.callback(self._folders.remove, folder)
                environ["TMPDIR"] = str(folder)
            jobs_child, jobs = _pipe(theirs, ours)
            events, events_child = _pipe(ours, theirs)
            death_child, death = _pipe(theirs, ours)
            output, output_child = _pipe(ours, theirs)
            inherited = (jobs_child, events_child, death_child)
            loan, lent_through = self._offer(ours, theirs)
            process = subprocess.Popen(
                self._command(name, inherited),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output_child,
                stderr=output_child,
                pass_fds=inherited if lent_through is None else (*inherited, lent_through),
                start_new_session=True,
            )
            ours.pop_all()
        worker = SpawnedWorker(
            process,
            jobs,
            events,
            death,
            output,
            folders=self._folders,
            folder=folder,
            loan=loan,
        )
        first = Import(
            gateway=os.getpid(),
            modules=tuple(imports),
            confinement=self._confinement,
            folder=str(folder) if folder is not None else None,
            lending=lent_through,
        )
        worker.send([first])
        return worker

    def _notice_ignored(self) -> None:
        """Say once which variables of the operator's do not reach the workers."""
        if not self._noticed and (names := ignored_variables(os.environ)):
            log.warning(
                "these environment variables do not reach the models' processes, which get fixed "
                "values or none: %s",
                ", ".join(names),
            )
        self._noticed = True

    def _offer(
        self, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
    ) -> "tuple[_Loan | None, int | None]":
        """Return what lends a worker memory, and the descriptor that it takes it from."""
        if self.kept is None:
            return None, None
        lending, child = socket.socketpair()
        theirs.callback(child.close)
        ours.callback(lending.close)
        return _Loan(lending, self.kept), child.fileno()

    def _make_folder(self, name: str) -> Path | None:
        """Make the folder of a worker. On a full disk it has none, and can write nowhere at all."""
        if self._folders is None:
            return None
        try:
            return self._folders.make()
        except OSError as error:
            log.warning("%s: it has no folder to write to: %s", name, error.strerror)
            return None

    def _command(self, name: str, descriptors: tuple[int, ...]) -> list[str]:
        program = _PROGRAM.format(
            path=[entry or os.getcwd() for entry in sys.path],
            module=self._module,
            name=self._function,
            descriptors=descriptors,
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # multiprocessing's
        return [sys.executable, *flags, "-u", "-c", program, f"bitinglip worker {name}"]


class SpawnedWorker:
    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        jobs: int,
        events: int,
        death: int,
        output: int,
        *,
        folders: WorkFolders | None = None,
        folder: Path | None = None,
        loan: "_Loan | None" = None,
    ) -> None:
        os.set_blocking(events, False)
        os.set_blocking(output, False)
        self.pid = process.pid
        self.events_fd = events
        self.output_fd = output
        self._process = process
        self._jobs = JobPipe(jobs, self.kill)
        self._death = death
        self._exit: ExitWatch | None = None
        self._folders = folders
        self.folder = folder
        self._loan = loan

    def bytes_read(self) -> int | None:
        return bytes_read(self.pid)

    def is_stopped(self) -> bool:
        return is_stopped(self.pid)

    def watch(self, on_exit: Callable[[], None]) -> None:
        self._exit = ExitWatch(self.pid, on_exit)

    def send(self, commands: Sequence[Command]) -> None:
        self.send_encoded(encode_commands(commands))

    def send_encoded(self, commands: bytes) -> None:
        """Send commands that are encoded together."""
        self._jobs.write(commands)

    def lend(self, spec: Load) -> None:
        if self._loan is not None:
            self._loan.make(spec)

    def kill(self) -> None:
        # Until it is waited for, its number is no other process's, nor is its group's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        if self._process.returncode is None and has_ended(self.pid):
            self.kill()
            self._process.poll()
        return self._process.returncode

    def close(self) -> None:
        if self._exit is not None:
            self._exit.close()
        self._jobs.close()
        for fd in (self.events_fd, self.output_fd, self._death):
            os.close(fd)
        if self._loan is not None:
            self._loan.end()
        if self._folders is not None and self.folder is not None:
            self._folders.remove(self.folder)


class _Loan:
    """Lends a worker memory of its model, once."""

    def __init__(self, lending: socket.socket, kept: KeptMemory) -> None:
        self._lending = lending
        self._kept = kept
        self._piece: Piece | None = None

    def make(self, spec: Load) -> None:
        size = 0 if spec.text is None else spec.text.prefix_ram_bytes
        if size and self._piece is None:
            self._piece = self._kept.take(spec.model, size)
        if self._piece is not None:
            with contextlib.suppress(OSError):  # it has ended: its pipe tells
                socket.send_fds(self._lending, [b"m"], [self._piece.fd])

    def end(self) -> None:
        self._lending.close()
        if self._piece is not None:
            self._kept.give_back(self._piece)


def told_end(handle: Handle) -> End | None:
    """Return what a handle knows of the end of its process beyond the exit code, if it does."""
    end: End | None = getattr(handle, "end", None)
    return end


def kept_by(launcher: Launcher) -> KeptMemory | None:
    """Return the memory that outlives a launcher's workers, if it keeps some."""
    kept: KeptMemory | None = getattr(launcher, "kept", None)
    return kept


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Make a pipe; each stack closes its end."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _fill_standard_streams() -> None:
    """Let no pipe get the number of a standard stream that this process was started without: in
    the child that number is the stream's."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
