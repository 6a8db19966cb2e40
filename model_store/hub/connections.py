"""Asks a hub's hosts over HTTP, in threads that can be stopped.

A stalled socket waits for its time-out; to stop at once, the sockets themselves are shut. The
standard library's client reads into large pieces, several times faster than those that split a
body into events; proxies and certificates are what the environment says.
"""

import base64
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from model_store.errors import DownloadError, PullCancelled
from model_store.hub.certificates import trusted, untrusted

T = TypeVar("T")
_TIMEOUT = 15.0  #: seconds of silence
_MOST_REDIRECTS = 5
_PIECE = 1 << 20
_GLANCE_SECONDS = 0.1
_LAST_SECONDS = 1.0  #: that a stopped thread has to notice; after that it finds its work refused
_SLOW_SECONDS = 30.0  #: of waiting for bytes, over which a speed is measured


class Broken(Exception):
    """A connection was not made, was cut or fell silent."""


class TooSlow(Broken):
    """A connection brings fewer bytes than are waited for."""


class Answer:
    """Holds an answer to a GET, whose body is read as it comes."""

    def __init__(self, response: Any, url: str, least: int = 0) -> None:
        """``least`` are the bytes that it brings in a second; fewer count as a stall."""
        self.status_code = int(response.status)
        self.headers: http.client.HTTPMessage = response.headers
        #: of another host than was asked
        self.is_elsewhere = _place(response.geturl()) != _place(url)
        self._response = response
        self._least = least

    @property
    def is_good(self) -> bool:
        return 200 <= self.status_code < 300

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces, each as soon as it is there. Raises Broken.

        Only the time of waiting for bytes counts, not that in which they are used or throttled.
        """
        waited, got = 0.0, 0
        try:
            while True:
                begun = time.monotonic()
                if not (piece := self._response.read1(_PIECE)):
                    return
                waited += time.monotonic() - begun
                got += len(piece)
                yield piece
                if waited >= _SLOW_SECONDS:
                    if got < self._least * waited:
                        raise TooSlow(f"{got} bytes in {waited:.0f} s")
                    waited, got = 0.0, 0
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(type(error).__name__) from error


class Connections:
    """Makes requests for several threads, and ends them all at once."""

    def __init__(
        self, cancelled: Callable[[], bool], threads: int = 1, least_speed: int = 0
    ) -> None:
        """``least_speed`` are the bytes per second below which a connection counts as stalled."""
        self._least_speed = least_speed
        self.stopped = threading.Event()
        self._cancelled = cancelled
        self._threads = max(1, threads)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._opener = _opener(self._notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @contextmanager
    def stream(self, url: str, headers: dict[str, str]) -> Iterator[Answer]:
        """Yield the answer to a GET, of whatever status, before its body.

        Authorization is not sent on to another host. Raises Broken, DownloadError or
        PullCancelled.
        """
        self.check()
        try:
            response = self._ask(url, headers)
            with response:
                yield Answer(response, url, self._least_speed)
        except Broken:
            self.check()  # broken off by us: the reason is another
            raise

    def _ask(self, url: str, headers: dict[str, str]) -> Any:
        address, basic = _without_credentials(url)
        request = urllib.request.Request(address, headers={**basic, **headers})
        try:
            return self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            return error
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None)
            if isinstance(reason, str):  # an address or a proxy of another kind than HTTP
                raise DownloadError(f"An address cannot be asked ({reason}).") from None
            raise Broken(type(reason or error).__name__) from error
        except ValueError as error:
            raise DownloadError("An address of the hub or of a proxy is none.") from error

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
            sockets, self._open = self._open, []
        for each in sockets:
            _shut(each)

    def _notice(self, opened: socket.socket) -> None:
        """Remember a socket."""
        with self._lock:
            self._open = [each for each in self._open if each.fileno() >= 0]
            self._open.append(opened)
        if self.stopped.is_set():
            _shut(opened)


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


def _opener(notice: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """Build a client of HTTP and HTTPS, and of nothing else that an address can name."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(_proxies()),
        urllib.request.UnknownHandler(),
        _Http(notice),
        _Https(notice, trusted()),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _proxies() -> dict[str, str]:
    """Return the proxies of the environment. Raises DownloadError, without their passwords."""
    found = urllib.request.getproxies()
    for kind in ("http", "https", "all"):
        address = found.get(kind, "")
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            good = not address or (parts.scheme in ("http", "https") and parts.hostname)
            _ = parts.port
        except ValueError:
            good = False
        if not good:
            raise DownloadError(
                f"The proxy of {kind.upper()}_PROXY cannot be used; write http://host:port."
            )
    return {**{kind: found["all"] for kind in ("http", "https") if "all" in found}, **found}


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, notice: Callable[[socket.socket], None], **more: Any) -> None:
        super().__init__(*args, **more)
        self._notice = notice

    def connect(self) -> None:
        super().connect()
        self._notice(self.sock)


class _EncryptedConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, notice: Callable[[socket.socket], None], **more: Any) -> None:
        super().__init__(*args, **more)
        self._notice = notice

    def connect(self) -> None:
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            # Of the very host, which may be one that another has redirected to.
            host = getattr(self, "_tunnel_host", None) or self.host
            raise untrusted(error, host) from error
        self._notice(self.sock)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, notice: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._notice = notice

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, notice=self._notice), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, notice: Callable[[socket.socket], None], context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._notice, self._trusted = notice, context

    def https_open(self, req: urllib.request.Request) -> Any:
        made = partial(_EncryptedConnection, notice=self._notice)
        return self.do_open(made, req, context=self._trusted)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MOST_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or before.scheme == "https" != after.scheme:
            raise DownloadError(
                f"The hub redirects from {before.scheme} to {after.scheme}, which is not followed."
            )
        fp.close()  # or its body, which may have no end, would be read
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and _place(newurl) != _place(req.full_url):
            made.remove_header("Authorization")
        return made


def _place(url: str) -> tuple[str, str]:
    """Return what a token is for: the scheme, the host and its port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return an address without name and password, and the header that they become."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {encoded}"}


def _shut(opened: socket.socket) -> None:
    with suppress(OSError):  # closed already
        # Not the method of an encrypted one: a thread may be reading from it.
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
