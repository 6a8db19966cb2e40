"""One file over HTTP: resumed where it stopped, tried again, and hashed as it comes.

The partial file is named by its content's hash, so it survives a crash, a restart and a change of
revision. The hub's client does neither (it begins anew, and trusts the length).
"""

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from model_store.errors import DownloadError, NoSpace, PullCancelled
from model_store.progress import Counter

FLOOR_BYTES = 256 * 1024 * 1024  #: of the disk is left free
_CHUNK = 1 << 20
_TRIES = 6  #: without a single new byte
_LONGEST_PAUSE = 8.0
_RETRIED = {403, 408, 425, 429, 500, 502, 503, 504}  #: 403: a signed link that has expired


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: where, how large, and what it must hash to."""

    path: str
    url: str
    size: int
    sha256: str | None  #: of files in large-file storage
    git_sha1: str | None  #: of the others: git's blob id

    @property
    def key(self) -> str:
        return self.sha256 or self.git_sha1 or ""


@dataclass
class Fetcher:
    """Fetches files into a folder of blobs. Not for several threads."""

    client: httpx.Client
    blobs: Path
    counter: Counter
    cancelled: Callable[[], bool]
    token: str | None = None
    pause: Callable[[float], None] = time.sleep

    def fetch(self, wanted: Wanted) -> Path:
        """The verified file. Raises DownloadError, NoSpace or PullCancelled; keeps what it has."""
        whole = self.blobs / wanted.key
        if whole.exists() and whole.stat().st_size == wanted.size:
            self.counter.add(wanted.path, wanted.size)
            return whole
        for _ in range(2):
            part = Part(wanted, self.blobs / f"{wanted.key}.part", self.counter)
            self._complete(wanted, part)
            if part.digest.hexdigest() == wanted.key:
                part.path.replace(whole)
                return whole
            part.begin_anew()
        raise DownloadError(f"{wanted.path} came damaged twice: its hash is not the hub's.")

    def _complete(self, wanted: Wanted, part: "Part") -> None:
        failures = 0
        while (before := part.size) < wanted.size:
            pause = self._try(wanted, part)
            failures = 0 if part.size > before else failures + 1
            if failures >= _TRIES:
                raise DownloadError(f"The hub does not deliver {wanted.path}; pull again to go on.")
            if part.size < wanted.size:
                backoff = min(_LONGEST_PAUSE, 0.25 * 2**failures) * random.uniform(0.75, 1)
                self.pause(max(pause, backoff))

    def _try(self, wanted: Wanted, part: "Part") -> float:
        """As much as one answer brings; the seconds that the server asks to wait after it."""
        try:
            self._get(wanted, part)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _RETRIED:
                raise _refused(wanted, error) from error
            return _retry_after(error.response)
        except httpx.TransportError:
            pass  # broken off: what came is kept, and the next try goes on from there
        return 0.0

    def _get(self, wanted: Wanted, part: "Part") -> None:
        headers = {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        if self.token:
            # The client drops it when a redirect leads to another host.
            headers["Authorization"] = f"Bearer {self.token}"
        with self.client.stream("GET", wanted.url, headers=headers) as answer:
            answer.raise_for_status()
            if part.size and answer.status_code != httpx.codes.PARTIAL_CONTENT:
                part.begin_anew()  # this server knows no ranges
            with part.path.open("ab") as file:
                for chunk in answer.iter_raw(_CHUNK):
                    self._check(wanted, part.size + len(chunk))
                    file.write(chunk)
                    part.note(chunk)
                file.flush()
                os.fsync(file.fileno())

    def _check(self, wanted: Wanted, size: int) -> None:
        if self.cancelled():
            raise PullCancelled("The pull was cancelled; pull again to go on where it stopped.")
        if size > wanted.size:
            raise DownloadError(f"The hub sends more of {wanted.path} than it announced.")
        if shutil.disk_usage(self.blobs).free < FLOOR_BYTES:
            raise NoSpace("The disk is nearly full; make room and pull again to go on.")


class Part:
    """What is there of a file, and the digest of just that."""

    def __init__(self, wanted: Wanted, path: Path, counter: Counter) -> None:
        self.path = path
        self._wanted = wanted
        self._counter = counter
        self.size = 0
        self.digest = _digest_of(wanted)
        if path.exists() and path.stat().st_size > wanted.size:
            path.unlink()
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self.note(chunk)

    def note(self, chunk: bytes) -> None:
        """These bytes are in the file now."""
        self.digest.update(chunk)
        self.size += len(chunk)
        self._counter.add(self._wanted.path, len(chunk))

    def begin_anew(self) -> None:
        self.path.unlink(missing_ok=True)
        self._counter.add(self._wanted.path, -self.size)
        self.size = 0
        self.digest = _digest_of(self._wanted)


def _digest_of(wanted: Wanted) -> "hashlib._Hash":
    if wanted.sha256:
        return hashlib.sha256()
    # git's blob id: the SHA-1 of a header and the content.
    return hashlib.sha1(b"blob %d\0" % wanted.size, usedforsecurity=False)


def _refused(wanted: Wanted, error: httpx.HTTPStatusError) -> DownloadError:
    status = error.response.status_code
    return DownloadError(f"The hub refuses {wanted.path} (HTTP status {status}).")


def _retry_after(answer: httpx.Response) -> float:
    """Seconds, where the server names a number of them; not more than a minute."""
    value = answer.headers.get("retry-after", "")
    return min(60.0, float(value)) if value.isdigit() else 0.0
