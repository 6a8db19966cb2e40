"""Manages the home folder: where everything lives, who holds it, and the secrets in it."""

import fcntl
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bitinglip.private_files import publish_once, replace_private
from model_store.rights import Refusal, refusal
from workers.secret_files import SecretFileRefused, read_secret_file

_SECRET_BYTES = 32
#: a reader of server.json touches the lock for an instant; a start outwaits it
_LOCK_PATIENCE = 0.25
_CLOCK_SECONDS = 5.0  #: by which the time of the machine's start may be off
_MAX_ADDRESS_BYTES = 100
_OWN_DESCRIPTORS = "/proc/self/fd"


class HomeError(Exception):
    """The home folder cannot be used; the message says why and what to do."""


class HomeInUse(HomeError):
    """Another server holds this home."""


def resolve_home(flag: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the home: --home, else BITINGLIP_HOME, else ~/.bitinglip; always absolute. Raises
    HomeError."""
    chosen = Path(flag or environ.get("BITINGLIP_HOME") or "~/.bitinglip")
    try:
        return chosen.expanduser().absolute()
    except RuntimeError as error:  # a user without an entry, in a container
        uid = os.geteuid()
        raise HomeError(
            f"uid {uid} has no home folder of its own; choose one with --home or BITINGLIP_HOME"
        ) from error


@dataclass(frozen=True, slots=True)
class Home:
    """Names the paths of a home folder; nothing is made before ``create``."""

    root: Path
    #: the folder of files that several servers share; None: the root
    common: Path | None = None

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def database(self) -> Path:
        return self.root / "bitinglip.db"

    @property
    def files(self) -> Path:
        return self._common / "files"

    @property
    def uploads(self) -> Path:
        """Return the folder of files that clients sent, until their requests have ended."""
        return self._common / "uploads"

    @property
    def batches(self) -> Path:
        """Return the folder of files that clients keep, and of results of batches."""
        return self._common / "batches"

    @property
    def _common(self) -> Path:
        return self.root if self.common is None else self.common

    @property
    def work(self) -> Path:
        """Return the folder of worker processes, while they run."""
        return self.root / "work"

    @property
    def audit(self) -> Path:
        """Return the folder of audit entries that are not in the database yet, and of its end."""
        return self.root / "audit"

    @property
    def caches(self) -> Path:
        """Return the folder of what compilers made for models."""
        return self.root / "cache"

    @property
    def admin_key(self) -> Path:
        return self.root / "admin.key"

    @property
    def secret_key(self) -> Path:
        return self.root / "secret.key"

    @property
    def gateway_id(self) -> Path:
        return self.root / "gateway.id"

    @property
    def lock(self) -> Path:
        return self.root / "server.lock"

    @property
    def server_json(self) -> Path:
        return self.root / "server.json"

    @property
    def socket(self) -> Path:
        return self.root / "server.sock"

    def create(self) -> None:
        """Makes what is missing, for the owner only; refuses a folder that others may write to.

        A folder in common must be there: one that is not mounted would be made on this machine
        alone, where the other servers find no file of it.
        """
        if self.common is not None and not self.common.is_dir():
            raise HomeError(f"gateways.folder: {self.common} is not there; mount it, or make it")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._close_to_others()
            for folder in (self.models, self.files, self.uploads, self.batches):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            found = refusal(self.root, write=True)
            text = str(found) if found is not None else f"{self.root}: {error.strerror}"
            raise HomeError(text) from error
        if (why := self.refusal()) is not None:
            raise HomeError(str(why))
        if self.common is not None:
            for folder in (self.common, self.files, self.uploads, self.batches):
                if folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                    raise HomeError(f"{folder}: others may write to this folder; chmod o-w it")

    def refusal(self) -> Refusal | None:
        """Say what of the home is another user's, or mounted read-only; None if it can be used.

        Models may be read-only: they can be run all the same.
        """
        names = sorted(self._own_names()) if self.root.is_dir() else []
        for path in (self.root, *(self.root / name for name in names)):
            write = path.name not in (self.models.name, "config.yaml")
            if (why := refusal(path, write=write)) is not None:
                return why
        return None

    def _close_to_others(self) -> None:
        """Give a folder of ours the mode 0700; one that holds other things too is left as it is."""
        found = self.root.stat()
        if not found.st_mode & 0o077:
            return
        if found.st_uid == os.getuid() and not self._foreign_names():
            self.root.chmod(0o700)
        elif found.st_mode & 0o022:
            raise HomeError(f"{self.root}: others may write to this folder; chmod 700 it first")

    def _own_names(self) -> set[str]:
        """Return the names of ours that are there."""
        ours = {path.name for path in (self.models, self.files, self.admin_key, self.secret_key)}
        ours |= {path.name for path in (self.lock, self.server_json, self.socket, self.uploads)}
        ours |= {path.name for path in (self.work, self.caches, self.audit, self.batches)}
        ours |= {"config.yaml", self.gateway_id.name}
        names = {path.name for path in self.root.iterdir()}
        return {name for name in names if name in ours or name.startswith(self.database.name)}

    def _foreign_names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()} - self._own_names()

    def secret(self, purpose: str) -> bytes:
        """Derive a key for one purpose from secret.key, which is made on first use."""
        if not os.path.lexists(self.secret_key):
            publish_once(self.secret_key, secrets.token_bytes(_SECRET_BYTES))
        return derived(_read_secret(self.secret_key), purpose)

    def adopt_secret(self, file: Path) -> None:
        """Take over a secret as this home's secret.key. Raises HomeError where it has another."""
        if (secret := self.planned_secret(file)) and not os.path.lexists(self.secret_key):
            publish_once(self.secret_key, secret)
            self.planned_secret(file)  # another start may have made one meanwhile

    def planned_secret(self, file: Path | None) -> bytes | None:
        """Return what secret.key holds, or would hold after a start that takes over ``file``; None
        where a start would make a new secret. Raises HomeError."""
        own = _read_secret(self.secret_key) if os.path.lexists(self.secret_key) else None
        if file is None:
            return own
        try:
            file.stat()
            secret = _long_enough(file, read_secret_file(file))
        except (FileNotFoundError, ValueError):  # or a NUL in the name
            raise HomeError(
                f"gateways.secret_file: {file} is not there; copy the secret.key of a server that "
                "uses this database there, or make it: docs/gateways.md says how"
            ) from None
        except OSError as error:  # such as a folder on the way that this user may not enter
            raise HomeError(f"gateways.secret_file: {file}: {error.strerror}") from None
        except SecretFileRefused as error:
            raise HomeError(f"gateways.secret_file: {error}") from None
        if own is not None and own != secret:
            raise HomeError(
                f"{self.secret_key}: this home has another secret than gateways.secret_file; keep "
                "the one that made the keys in use: copy it over the other"
            )
        return secret

    def identity(self) -> str:
        """Return the name of this home among those of a shared database, made on first use."""
        if not os.path.lexists(self.gateway_id):
            publish_once(self.gateway_id, f"{secrets.token_hex(6)}\n".encode())
        try:
            name = self.gateway_id.read_text("ascii").strip()
        except (OSError, ValueError):
            name = ""
        if not name.isalnum():
            raise HomeError(f"{self.gateway_id}: this is no name of a server; remove the file")
        return name

    def write_server_json(self, url: str, pid: int) -> None:
        """Say where the server is that holds this home."""
        for left in self.root.glob(f"{self.server_json.name}.*"):  # drafts of servers that died
            left.unlink(missing_ok=True)
        replace_private(self.server_json, json.dumps({"url": url, "pid": pid}).encode())

    def machine_went_down(self, booted: float) -> bool:
        """Return True if the last server of this home ran until the machine went down.

        ``booted`` is when the machine started, by the clock on the wall.
        """
        try:
            return self.server_json.stat().st_mtime < booted - _CLOCK_SECONDS
        except OSError:
            return False

    def remove_server_json(self) -> None:
        self.server_json.unlink(missing_ok=True)

    def read_server_json(self) -> dict[str, Any] | None:
        """Return ``{url, pid}`` of the running server; None when none runs, whatever the file
        says."""
        if not HomeLock.is_held(self):
            return None
        return _read_json(self.server_json)


@contextmanager
def socket_address(path: Path) -> Iterator[str | None]:
    """Yield an address of a Unix socket's path; None if the path is too long for one.

    The system limits addresses to about a hundred bytes. On Linux, a longer path is reached
    through its folder's descriptor, which stays open inside the block.
    """
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        yield str(path)
    elif not Path(_OWN_DESCRIPTORS).is_dir():
        yield None
    else:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"{_OWN_DESCRIPTORS}/{folder}/{path.name}"
        finally:
            os.close(folder)


class HomeLock:
    """Holds the right to be the server of a home, by flock, for the life of the process.

    ``with HomeLock(home): ...`` raises HomeInUse when another process has it.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._fd: int | None = None

    def acquire(self) -> None:
        fd = _open_lock(self._home.lock)
        if not _lock_patiently(fd):
            os.close(fd)
            raise HomeInUse(
                f"{self._home.root} is in use by {_holder(self._home)}; stop that, or choose "
                "another home with --home"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @staticmethod
    def is_held(home: Home) -> bool:
        """True if a server runs on this home."""
        try:
            fd = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared, so that two that ask at once do not take each other for a server.
            return not _try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}") from error


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_patiently(fd: int) -> bool:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while not _try_lock(fd, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _holder(home: Home) -> str:
    """Name the holder of the lock for a message; it may not have written its pid yet."""
    try:
        return f"pid {int(home.lock.read_text())}"
    except (OSError, ValueError):
        return "another process"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def derived(secret: bytes, purpose: str) -> bytes:
    """Return the key for one purpose that is derived from a secret."""
    return hmac.digest(secret, purpose.encode(), "sha256")


def _read_secret(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG((found := os.fstat(fd)).st_mode):  # a pipe would be waited for
        os.close(fd)
        raise HomeError(f"{path}: this is no file")
    with open(fd, "rb") as file:
        mode = stat.S_IMODE(found.st_mode)
        secret = file.read()
    if mode & 0o077:
        raise HomeError(f"{path}: others may read this secret (mode {mode:04o}); chmod 600 it")
    return _long_enough(path, secret)


def _long_enough(path: Path, secret: bytes) -> bytes:
    if len(secret) < _SECRET_BYTES:
        raise HomeError(f"{path}: this secret is too short; restore it, or remove it with all keys")
    return secret
