"""Downloads one file over HTTP: resumes it, retries it, and hashes it as it comes.

The partial file is named by its content's hash, so it survives a crash, a restart and a change of
revision. The hub's client does neither (it begins anew, and trusts the length).
"""

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from model_store.disk import check_room, store_errors
from model_store.errors import DownloadError, PullCancelled
from model_store.progress import Counter

_CHUNK = 1 << 20
_TRIES = 6  #: without a single new byte
_LONGEST_PAUSE = 8.0
_NAP = 0.2  #: of a pause, between two looks at whether the pull is cancelled
_RETRIED = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Wanted:
    """A file to fetch, with its address, its size and its hash."""

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
    """Fetches files into a folder of blobs; not safe for several threads."""

    client: httpx.Client
    blobs: Path
    cancelled: Callable[[], bool]
    token: str | None = None

    def fetch(self, wanted: Wanted, counter: Counter) -> tuple[Path, str]:
        """Fetch a file; return its verified path and its SHA-256.

        Raises DownloadError, NoSpace or PullCancelled; keeps what has come.
        """
        whole = self.blobs / wanted.key
        unfinished = self.blobs / f"{wanted.key}.part"
        with store_errors(f"{wanted.path} cannot be written"):
            if whole.exists():
                whole.replace(unfinished)  # the disk may have damaged it since it was verified
            for _ in range(2):
                part = Part(wanted, unfinished, counter)
                self._complete(wanted, part)
                if part.key == wanted.key:
                    part.path.replace(whole)
                    return whole, part.sha256
                part.begin_anew()
        raise DownloadError(f"{wanted.path} came damaged twice: its hash is not the hub's.")

    def _complete(self, wanted: Wanted, part: "Part") -> None:
        failures = 0
        self._check(part, 0)
        while (before := part.size) < wanted.size:
            status = self._try(wanted, part)
            failures = 0 if part.size > before else failures + 1
            if failures >= _TRIES:
                why = f" (HTTP status {status.status_code})" if status else ""
                raise DownloadError(
                    f"The hub does not deliver {wanted.path}{why}; pull again to go on."
                )
            if part.size < wanted.size:
                backoff = min(_LONGEST_PAUSE, 0.25 * 2**failures) * random.uniform(0.75, 1)
                self._pause(max(_retry_after(status), backoff), part)

    def _try(self, wanted: Wanted, part: "Part") -> httpx.Response | None:
        """Fetch as much as one response brings; return a response that refuses but may pass."""
        try:
            self._get(wanted, part)
        except httpx.HTTPStatusError as error:
            if not _may_pass(error.response):
                raise _refused(wanted, error.response) from error
            return error.response
        except httpx.TransportError:
            pass  # broken off: what came is kept, and the next try goes on from there
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = type(error).__name__
            raise DownloadError(f"The hub does not deliver {wanted.path} ({why}).") from error
        return None

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
            with part.path.open("ab", buffering=0) as file:
                # As they come: chunks of a fixed size would lose the last one in a reset.
                for chunk in answer.iter_raw():
                    self._check(part, len(chunk))
                    file.write(chunk)
                    part.note(chunk)
                os.fsync(file.fileno())

    def _check(self, part: "Part", coming: int) -> None:
        if self.cancelled():
            raise PullCancelled("The pull was cancelled; pull again to go on where it stopped.")
        if part.size + coming > part.wanted.size:
            raise DownloadError(f"The hub sends more of {part.wanted.path} than it announced.")
        check_room(self.blobs, part.wanted.size - part.size)

    def _pause(self, seconds: float, part: "Part") -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(part, 0)
            time.sleep(min(left, _NAP))


class Part:
    """The part of a file that has come, and the digests of that part."""

    def __init__(self, wanted: Wanted, path: Path, counter: Counter) -> None:
        self.path = path
        self.wanted = wanted
        self._counter = counter
        self._begin()
        if path.exists() and path.stat().st_size > wanted.size:
            path.unlink()
        path.touch(mode=0o600)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.note(chunk)

    def _begin(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        # git's blob id: the SHA-1 of a header and the content.
        header = b"blob %d\0" % self.wanted.size
        self._git = None if self.wanted.sha256 else hashlib.sha1(header, usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def key(self) -> str:
        return self._git.hexdigest() if self._git else self.sha256

    def note(self, chunk: bytes) -> None:
        """Record that these bytes are in the file now."""
        self._sha256.update(chunk)
        if self._git:
            self._git.update(chunk)
        self.size += len(chunk)
        self._counter.add(self.wanted.path, len(chunk))

    def begin_anew(self) -> None:
        self.path.write_bytes(b"")
        self._counter.add(self.wanted.path, -self.size)
        self._begin()


def _may_pass(answer: httpx.Response) -> bool:
    """Return whether a retry may help. A 403 of a second host is a signed link that expired."""
    return answer.status_code in _RETRIED or (answer.status_code == 403 and bool(answer.history))


def _refused(wanted: Wanted, answer: httpx.Response) -> DownloadError:
    if answer.headers.get("x-error-code") == "GatedRepo":
        return DownloadError(
            "The repository is gated: ask for access on its page on the hub, with the account "
            "of your token, then pull again."
        )
    return DownloadError(f"The hub refuses {wanted.path} (HTTP status {answer.status_code}).")


def _retry_after(answer: httpx.Response | None) -> float:
    """Return the seconds that the server asks to wait, at most a minute."""
    value = answer.headers.get("retry-after", "") if answer else ""
    return min(60.0, float(value)) if value.isascii() and value.isdigit() else 0.0
