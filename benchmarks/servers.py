"""Start a server in a process of its own, wait until it answers, stop it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
#: The command by its module: it need not be installed, only importable.
BITINGLIP = [sys.executable, "-m", "cli"]
_STOP_PATIENCE = 15.0
_POLL = 0.05
_SETTLED = 1.0
_SETTLE_PATIENCE = 60.0


class ServerDied(Exception):
    """A server ended, or never answered; the message has the end of its log."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """``with Server("name", command, port, log) as server:`` runs it; ``server.url`` answers.

    It leads a process group, so that its workers end with it whatever happens.
    """

    def __init__(
        self, name: str, command: list[str], *, port: int, log: Path, ready: str, patience: float
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.key: str | None = None
        self.seconds_to_ready = 0.0
        self._command = command
        self._port = port
        self._log = log
        self._ready = ready
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,  # away from a config.yaml in the caller's folder
                env=clean_environment(),
                start_new_session=True,
            )
        try:
            self._wait(started + self._patience)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_ready = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time so far: of the process itself, and of its children that still run."""
        own = psutil.Process(self.pid)
        return _cpu(own), sum(_cpu(child) for child in own.children(recursive=True))

    def settle(self) -> None:
        """Wait until it does nothing of its own: ours warms a spare process after a load."""
        deadline = time.monotonic() + _SETTLE_PATIENCE
        while time.monotonic() < deadline:
            before = sum(self.cpu_seconds())
            time.sleep(_SETTLED)
            if sum(self.cpu_seconds()) - before < _SETTLED / 20:
                return
        print(f"{self.name}: still busy after {_SETTLE_PATIENCE:g} s", file=sys.stderr)

    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        assert self._process is not None, "not started"
        return self._process.poll()

    def terminate(self, patience: float = _STOP_PATIENCE) -> int | None:
        """Send SIGTERM; return the exit code, or None if it still runs after ``patience``
        seconds."""
        assert self._process is not None, "not started"
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        return self._process.poll()

    def stop(self) -> None:
        """Send SIGTERM, wait, then send SIGKILL to the rest of the group."""
        if self._process is None:
            return
        if self._process.poll() is None and self.terminate() is None:
            print(f"{self.name}: did not stop in {_STOP_PATIENCE:g} s, killed", file=sys.stderr)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _wait(self, deadline: float) -> None:
        assert self._process is not None, "not started"
        while not _answers(self._port, self._ready):
            if (code := self._process.poll()) is not None:
                raise ServerDied(f"{self.name} ended with {code}:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise ServerDied(f"{self.name} does not answer:\n{self._tail()}")
            time.sleep(_POLL)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def clean_environment() -> dict[str, str]:
    """Return our environment without the settings of a BitingLip, and without network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BITINGLIP_")}
    path = os.pathsep.join(filter(None, [str(HERE.parent), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def bare(work: Path) -> Server:
    port = free_port()
    command = [sys.executable, str(HERE / "bare.py"), str(port)]
    return Server(
        "bare FastAPI", command, port=port, log=work / "bare.log", ready="/readyz", patience=30
    )


class BitingLip(Server):
    """Runs ``bitinglip serve`` on a home of its own; its key is read once it answers."""

    def __init__(self, work: Path, *settings: str, demo: bool = False) -> None:
        port = free_port()
        self.home = work / "home"
        command = [*BITINGLIP, "serve", "--home", str(self.home), "--port", str(port)]
        command += [word for setting in settings for word in ("--set", setting)]
        command += ["--demo"] if demo else ["--set", "demo=never"]
        super().__init__(
            "bitinglip",
            command,
            port=port,
            log=work / "bitinglip.log",
            ready="/readyz",
            patience=120,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self.key = (self.home / "admin.key").read_text().strip()
        return self


def import_model(work: Path, model: Path, name: str) -> None:
    """Take ``model`` into the store of the home that :class:`BitingLip` will run on."""
    home = str(work / "home")
    subprocess.run(
        [*BITINGLIP, "models", "import", str(model), "--name", name, "--home", home],
        check=True,
        cwd=work,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
    )


def transformers_serve(work: Path, model: Path, *, continuous_batching: bool) -> Server:
    port = free_port()
    mode = "--continuous-batching" if continuous_batching else "--no-continuous-batching"
    command = [str(BIN / "transformers"), "serve", str(model), mode, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    name = "transformers serve" + (" CB" if continuous_batching else "")
    log = work / f"{name.replace(' ', '-')}.log"
    return Server(name, command, port=port, log=log, ready="/health", patience=180)
