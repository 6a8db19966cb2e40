"""Holds the HTTP client of one pull, and runs its work in threads that can be stopped.

A stalled socket waits for its time-out; to stop at once, the sockets themselves are shut.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from model_store.errors import DownloadError, PullCancelled

T = TypeVar("T")
_TIMEOUT = httpx.Timeout(15, connect=10)
_GLANCE_SECONDS = 0.1
_LAST_SECONDS = 1.0  #: that a stopped thread has to notice; after that it finds its work refused


class Connections:
    """An HTTP client for several threads, with proxies and certificates as the environment says."""

    def __init__(self, cancelled: Callable[[], bool], threads: int = 1) -> None:
        self.stopped = threading.Event()
        self._cancelled = cancelled
        self._threads = max(1, threads)
        self._lock = threading.Lock()
        self._open: list[Any] = []
        self._client = _client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._client.close()

    @contextmanager
    def stream(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Yield the answer to a GET before its body. Raises what the client raises, or
        PullCancelled."""
        self.check()
        # Authorization is dropped by the client when a redirect leads to another host.
        known = {"trace": self._notice}
        try:
            with self._client.stream("GET", url, headers=headers, extensions=known) as answer:
                yield answer
        except (httpx.TransportError, RuntimeError):
            self.check()  # broken off by us: the reason is another
            raise

    def check(self) -> None:
        """Raise PullCancelled if the work was stopped."""
        if self.stopped.is_set():
            raise PullCancelled("The pull was cancelled; pull again to go on where it stopped.")

    def call(self, work: Callable[[], T]) -> T:
        """Do work in a thread, which is left behind when the pull is stopped meanwhile."""
        future = in_thread(work)
        while not wait([future], _GLANCE_SECONDS).done:
            if self._cancelled():
                self.stop()
            self.check()
        return future.result()

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Do all jobs, several at once. The first error stops the others and is raised."""
        waiting = deque(jobs)

        def work() -> None:
            while waiting:
                self.check()
                try:
                    job = waiting.popleft()
                except IndexError:
                    return  # another thread took the last one
                job()

        count = min(self._threads, len(waiting))
        self._finish([in_thread(work) for _ in range(count)])

    def _finish(self, futures: list[Future[None]]) -> None:
        """Wait for all; at the first error, or when the pull is cancelled, stop them."""
        open_ones: set[Future[None]] = set(futures)
        try:
            while open_ones:
                done, open_ones = wait(open_ones, _GLANCE_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if open_ones and self._cancelled():
                    self.stop()
                    self.check()
        except BaseException:
            self.stop()
            wait(futures, _LAST_SECONDS)
            raise

    def stop(self) -> None:
        """End all work within a moment, also that which waits for a silent server."""
        self.stopped.set()
        with self._lock:
            streams, self._open = self._open, []
        for stream in streams:
            _shut(stream)

    def _notice(self, event: str, info: dict[str, Any]) -> None:
        """Remember the sockets that the client opens."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._open = [each for each in self._open if _descriptor(each) >= 0]
                self._open.append(info["return_value"])
            if self.stopped.is_set():
                _shut(info["return_value"])


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Begin work in a thread that does not hold up the end of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _client() -> httpx.Client:
    try:
        return httpx.Client(
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_redirects=5,
            event_hooks={"response": [_refuse_downgrade]},
        )
    except OSError as error:  # SSLError is one
        raise DownloadError(
            "The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read "
            f"({getattr(error, 'reason', None) or error.strerror})."
        ) from error
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        # Without the address, which may hold a password.
        raise DownloadError(
            f"The proxy of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used "
            f"({type(error).__name__}); write http://host:port."
        ) from error


def _descriptor(stream: Any) -> int:
    found = stream.get_extra_info("socket")
    return found.fileno() if isinstance(found, socket.socket) else -1


def _shut(stream: Any) -> None:
    found = stream.get_extra_info("socket")
    if isinstance(found, socket.socket):
        with suppress(OSError):  # closed already
            # Not the method of an encrypted one: a thread may be reading from it.
            socket.socket.shutdown(found, socket.SHUT_RDWR)


def _refuse_downgrade(answer: httpx.Response) -> None:
    if answer.has_redirect_location and answer.request.url.scheme == "https":
        target = answer.request.url.join(answer.headers["location"])
        if target.scheme != "https":
            raise DownloadError("The hub redirects from https to http, which is not followed.")
