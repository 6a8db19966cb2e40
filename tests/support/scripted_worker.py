"""Plays workers inside the test's own process: real commands, frames and pipes, but no engine.

It stands where a process would, behind the launcher, so everything else of the server is real.
"""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from workers import protocol
from workers.framing import write_events

#: yields the events of one job; cancelled with the job, and when its worker is killed
Script = Callable[[protocol.Job], AsyncIterator[protocol.JobEvent]]

SLOTS = 64


class ScriptedLauncher:
    """Launches workers that follow a script, and remembers what the gateway sent to them."""

    def __init__(self, script: Script, *, slots: int = SLOTS) -> None:
        self.script = script
        self.slots = slots
        self.jobs: list[protocol.Job] = []
        self.cancelled: list[str] = []  #: ids of jobs that the gateway cancelled
        self.broken_models: set[str] = set()  #: models that do not load
        self.loads: list[protocol.Load] = []

    def launch(
        self,
        name: str,
        imports: Sequence[str],  # noqa: ARG002  a script imports nothing
        visible_devices: str | None,  # noqa: ARG002  and uses no device
    ) -> "ScriptedWorker":
        return ScriptedWorker(self, name)


class ScriptedWorker:
    """Runs a thread with an event loop of its own, as seen through the pool's handle."""

    folder = None  #: it makes no files

    def __init__(self, launcher: ScriptedLauncher, name: str) -> None:
        self._launcher = launcher
        self._events, self._own_events = socket.socketpair()
        self._events.setblocking(False)
        self._output, self._own_output = os.pipe()
        self._sentinel, self._own_sentinel = os.pipe()
        os.set_blocking(self._output, False)
        self._loop = asyncio.new_event_loop()
        self._commands: asyncio.Queue[Sequence[protocol.Command] | None] = asyncio.Queue()
        self._code: int | None = None
        self._beat: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ---- the gateway's side ----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def events_fd(self) -> int:
        return self._events.fileno()

    def bytes_read(self) -> int | None:
        return None

    def is_stopped(self) -> bool:
        return False

    @property
    def output_fd(self) -> int:
        return self._output

    def lend(self, spec: protocol.Load) -> None:
        """Do nothing: it keeps nothing."""

    def send(self, commands: Sequence[protocol.Command]) -> None:
        self._put(commands)

    def watch(self, on_exit: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._sentinel)
            on_exit()

        loop.add_reader(self._sentinel, ended)

    def kill(self) -> None:
        with suppress(OSError):
            self._own_events.shutdown(socket.SHUT_RDWR)  # wakes a blocked write, too
        self._put(None)

    def reap(self) -> int | None:
        return self._code

    def close(self) -> None:
        self._thread.join()
        self._events.close()
        os.close(self._output)
        os.close(self._sentinel)

    def _put(self, commands: Sequence[protocol.Command] | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._commands.put_nowait, commands)

    # ---- the worker's side -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with suppress(OSError):  # killed while it wrote
                self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._code = 0
            self._own_events.close()
            os.close(self._own_output)
            os.close(self._own_sentinel)

    async def _serve(self) -> None:
        self._write(protocol.Imported())
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while (commands := await self._commands.get()) is not None:
                for command in commands:
                    match command:
                        case protocol.Stop():
                            return
                        case protocol.Import():
                            pass  # nothing is needed
                        case protocol.Cancel(id=job_id):
                            self._launcher.cancelled.append(job_id)
                            if task := running.pop(job_id, None):
                                task.cancel()
                        case protocol.Load():
                            self._launcher.loads.append(command)
                            if not self._load(command):
                                return
                        case _:
                            self._launcher.jobs.append(command)
                            running[command.id] = self._start(command)
        finally:
            tasks = [*running.values(), *([self._beat] if self._beat else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _load(self, spec: protocol.Load) -> bool:
        if spec.model in self._launcher.broken_models:
            self._write(protocol.LoadFailed(code="MODEL_LOAD_FAILED", message="it is broken"))
            return False
        self._write(protocol.LoadProgress(0.5))
        ready = protocol.Ready(slots=self._launcher.slots, max_context=2048, has_chat_template=True)
        self._write(ready)
        self._beat = asyncio.create_task(self._heartbeat(spec.heartbeat_seconds))
        return True

    async def _heartbeat(self, interval: float) -> None:
        while True:
            self._write(protocol.Heartbeat(steps=1, in_flight=0, memory_bytes=1000))
            await asyncio.sleep(interval)

    def _start(self, job: protocol.Job) -> "asyncio.Task[None]":
        """Play a job; its end is told even if it is cancelled before it has begun."""

        def ended(task: "asyncio.Task[None]") -> None:
            if task.cancelled():
                with suppress(OSError):  # the worker was killed
                    self._write(protocol.Cancelled(id=job.id))

        task = asyncio.create_task(self._play(job))
        task.add_done_callback(ended)
        return task

    async def _play(self, job: protocol.Job) -> None:
        async for event in self._launcher.script(job):
            self._write(event)

    def _write(self, event: protocol.Event) -> None:
        write_events(self._own_events.fileno(), [event])
