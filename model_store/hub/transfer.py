"""Downloads one file over HTTP: resumes it, retries it, and hashes what the disk has of it.

The partial file is named by its content's hash, so it survives a crash, a restart and a change of
revision. The hub's client does neither (it begins again, and trusts the length).
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from model_store.disk import check_room, store_errors
from model_store.errors import DownloadError, Gated, HubUnreachable, TokenRefused
from model_store.hub.certificates import Untrusted
from model_store.hub.connections import Answer, Broken, Connections, TooSlow
from model_store.hub.partials import Part, Wanted
from model_store.hub.retries import Patience, Throttle, may_pass
from model_store.progress import Counter

PART = ".part"
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)


class _Elsewhere(Exception):
    """This address will not deliver the file; another may, or the same later if it ``may_pass``."""

    def __init__(self, why: str, *, may_pass: bool = False) -> None:
        super().__init__(why)
        self.may_pass = may_pass


@dataclass
class Fetcher:
    """Fetches files into a folder, each under its hash; files of different content at once."""

    connections: Connections
    folder: Path
    counter: Counter
    throttle: Throttle
    token: str | None = None  #: for the first address of each file only

    def fetch(self, wanted: Wanted) -> tuple[Path, str]:
        """Fetch a file; return its verified path and its SHA-256.

        Raises DownloadError, NoSpace or PullCancelled; keeps what has come.
        """
        whole = self.folder / wanted.key
        unfinished = self.folder / f"{wanted.key}{PART}"
        with store_errors(f"{wanted.path} cannot be written"):
            if whole.exists():
                whole.replace(unfinished)  # the disk may have damaged it since it was verified
            with Part(wanted, unfinished, self.counter) as part:
                for _ in range(2):
                    self._complete(part)
                    if part.verify(self.connections.check):
                        part.path.replace(whole)
                        return whole, part.sha256
                    part.restart()
        raise DownloadError(
            f"{wanted.path} came damaged twice: its hash is not the hub's. Something between here "
            "and the hub changes what passes, or the hub's storage is damaged."
        )

    def start(self, wanted: Wanted, count: int) -> bytes | None:
        """Return the first bytes of a file, up to ``count``, and keep nothing.

        It asks once: None is what does not come at once. Raises PullCancelled.
        """
        headers = {"Accept-Encoding": "identity", "Range": f"bytes=0-{count - 1}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        got = b""
        try:
            with self.connections.stream(wanted.urls[0], headers) as answer:
                for piece in answer.pieces() if answer.is_good else ():
                    self.connections.check()
                    got += piece
                    if len(got) >= count:
                        break
        except (Broken, DownloadError):
            return None
        return got[:count] if len(got) >= min(count, wanted.size) else None

    def _complete(self, part: Part) -> None:
        """Go through the addresses until one has brought the rest."""
        reason, passing = "", False
        self._check_room()
        for number, url in enumerate(part.wanted.urls):
            try:
                self._from(url, part, None if number else self.token)
                return
            except _Elsewhere as error:
                reason, passing = reason or str(error), passing or error.may_pass
        told = f"The hub does not deliver {part.wanted.path}{reason}; pull again to go on."
        raise HubUnreachable(told) if passing else DownloadError(told)

    def _from(self, url: str, part: Part, token: str | None) -> None:
        patience = Patience(self.connections.stopped)
        last = url == part.wanted.urls[-1]
        most = part.size
        while part.size < part.wanted.size:
            try:
                answer = self._try(url, part, token, last=last)
            except TooSlow:
                answer, most = None, part.size  # what trickles in is no progress
            if part.size > most:  # than ever: one that begins again each time makes no progress
                most = part.size
                patience.progressed()
            elif not patience.failed():
                why = f" (HTTP status {answer.status_code})" if answer is not None else ""
                raise _Elsewhere(why, may_pass=answer is None or may_pass(answer.status_code))
            if part.size < part.wanted.size:
                patience.rest(answer)
                self.connections.check()

    def _try(self, url: str, part: Part, token: str | None, *, last: bool) -> Answer | None:
        """Fetch as much as one answer brings; return an answer that refuses but may pass."""
        headers = {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with self.connections.stream(url, headers) as answer:
                if answer.is_good:
                    self._take(answer, part)
                    return None
                # A 403 of a second host is a signed link that has expired: the hub makes another.
                if may_pass(answer.status_code) or (
                    answer.status_code == HTTPStatus.FORBIDDEN and answer.is_elsewhere
                ):
                    return answer
                if not last:
                    raise _Elsewhere(f" (HTTP status {answer.status_code})")
                raise _refused(part.wanted, answer, token)
        except TooSlow:
            raise
        except Untrusted as error:
            if last:
                raise
            raise _Elsewhere(f" ({error.message})") from error
        except Broken:
            return None  # what came is kept, and the next try goes on from there

    def _take(self, answer: Answer, part: Part) -> None:
        if part.size and not _goes_on(answer, part):
            part.restart()  # this server knows no ranges
        try:
            for piece in answer.pieces():
                self.connections.check()
                if part.coming + len(piece) > part.wanted.size:
                    raise DownloadError(
                        f"The hub sends more of {part.wanted.path} than its listing says."
                    )
                self.throttle.take(len(piece))
                if part.take(piece):
                    self._check_room()
        finally:
            part.write()

    def _check_room(self) -> None:
        check_room(self.folder, self.counter.left())


def _goes_on(answer: Answer, part: Part) -> bool:
    """Return whether an answer goes on where the part ends."""
    if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
        return False
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    # Without the header it is taken at its word; the hash decides in the end.
    return match is None or int(match[1]) == part.size


def _refused(wanted: Wanted, answer: Answer, token: str | None) -> DownloadError:
    if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return DownloadError(
            f"The hub does not deliver all of {wanted.path}: its storage has fewer bytes than its "
            "listing says. Another revision may be whole."
        )
    if answer.headers.get("x-error-code") == "GatedRepo":
        return Gated(
            "The repository is gated: ask for access on its page on the hub, with the account "
            "of your token, then pull again."
        )
    if answer.status_code == HTTPStatus.UNAUTHORIZED and token:
        return TokenRefused(
            f"The hub refuses the token for {wanted.path}: it may have expired, or may not read "
            "this repository. Make a new one, then pull again to go on."
        )
    return DownloadError(f"The hub refuses {wanted.path} (HTTP status {answer.status_code}).")
