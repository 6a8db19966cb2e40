"""Calls the server's HTTP API for commands: JSON, streams, and errors as one clear line."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from cli.errors import Failure

if TYPE_CHECKING:
    import ssl

    import httpx

Event = tuple[str, dict[str, Any]]
Upload = tuple[str, IO[bytes]]  #: a name and what it holds
_PAGE = 1000
_PATIENCE = 30.0  #: seconds for an answer; a stream sends a comment twice as often
_LONGEST_LINE = 64 * 2**20


class Client:
    """Asks a server; ``is_here``: it is on this machine, so no proxy is used.

    ``trust`` takes the place of the machine's certificates; ``socket`` is the path of the server's
    Unix socket, which is used in place of the URL.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        is_here: bool = True,
        trust: "ssl.SSLContext | None" = None,
        socket: str | None = None,
    ) -> None:
        import httpx

        if key is not None and not (key.isascii() and key.isprintable()):
            raise Failure("the API key holds characters that no key has; check BITINGLIP_API_KEY")
        self.url = url
        self.is_here = is_here
        self._has_key = key is not None
        self._http = httpx.Client(
            base_url="http://localhost" if socket else url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_PATIENCE, connect=5),
            transport=httpx.HTTPTransport(verify=trust or True, uds=socket) if is_here else None,
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path, params=query)

    def get_patiently(self, path: str) -> Any:
        """Get what the server may take minutes for."""
        return self._ask("GET", path, timeout=None)

    def post(self, path: str, body: Any = None, *, patience: float | None = _PATIENCE) -> Any:
        return self._ask("POST", path, json=body, timeout=patience)

    def patch(self, path: str, body: Any) -> Any:
        return self._ask("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path, timeout=None)

    def list(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return all rows of a list, asked for page by page."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=_PAGE, offset=len(rows), **query)
            rows += page["data"]
            if not page["data"] or len(rows) >= page["total"]:
                return rows

    def text(self, path: str) -> str:
        """Return the text of a response that is not JSON."""
        with self._translated():
            answer = self._http.get(path)
        if not answer.is_success:
            raise self._refusal(answer)
        return answer.text

    def health(self) -> dict[str, Any]:
        """Return the server's health report, which may come with an error status."""
        with self._translated():
            answer = self._http.get("/health")
        found: dict[str, Any] = _json(answer) or {}
        return found if "status" in found else {"status": "unknown"}

    @contextmanager
    def stream(
        self, path: str, body: Any, upload: "Upload | None" = None
    ) -> Iterator[Iterator[Event]]:
        """Yield the events of an answer; leaving the block early cancels it. With a file to send,
        the body's fields go as a form's."""
        content: dict[str, Any] = {"json": body}
        if upload is not None:
            content = {"data": body, "files": {"file": upload}}
        with self._events("POST", path, **content) as events:
            yield events

    @contextmanager
    def follow(self, path: str) -> Iterator[Iterator[Event]]:
        """Yield the events of work that goes on without this command."""
        with self._events("GET", path) as events:
            yield events

    @contextmanager
    def _events(self, method: str, path: str, **content: Any) -> Iterator[Iterator[Event]]:
        with (
            self._translated(),
            self._http.stream(method, path, **content) as answer,
        ):
            if answer.status_code >= 400:
                answer.read()
                raise self._refusal(answer)
            yield parse_events(answer.iter_bytes())

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        with self._translated():
            answer = self._http.request(method, path, **arguments)
        if not answer.is_success:
            raise self._refusal(answer)
        if answer.status_code == 204:
            return None
        if (found := _json(answer)) is None:
            raise Failure(f"{self.url} answers, but not as BitingLip does; check the address")
        return found

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise Failure(self._unreachable(error)) from error
        except httpx.TimeoutException as error:
            raise Failure(f"the server at {self.url} does not answer; see its log") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Failure(f"the connection to {self.url} broke off ({error})") from error
        except UnicodeEncodeError as error:
            raise Failure("the text is not valid Unicode, so it cannot be sent") from error

    def _unreachable(self, error: Exception) -> str:
        if "CERTIFICATE" in str(error):
            return (
                f"the certificate of {self.url} is not trusted ({error}); give the server's "
                "settings with --config, or its certificate in SSL_CERT_FILE"
            )
        reason = str(error).partition("] ")[2].lower() or str(error)
        return (
            f"no server answers at {self.url} ({reason}); start one with `bitinglip serve`, "
            "or set BITINGLIP_URL"
        )

    def _refusal(self, answer: "httpx.Response") -> Failure:
        found = _json(answer)
        error = found.get("error") if isinstance(found, dict) else None
        if not isinstance(error, dict):
            return Failure(
                f"{self.url} answered with status {answer.status_code}, "
                "and not as BitingLip does; check the address"
            )
        return refusal(error, answer.headers.get("retry-after"), self._has_key)


def refusal(error: dict[str, Any], retry_after: str | None = None, has_key: bool = True) -> Failure:
    """Turn an error object of the API into the exception that ends a command."""
    line = failure_line(error, retry_after, has_key)
    return Failure(line, code=str(error.get("code") or ""))


def failure_line(
    error: dict[str, Any], retry_after: str | None = None, has_key: bool = True
) -> str:
    """Turn an error object of the API into one line that also says what to do."""
    message = str(error.get("message") or error.get("code") or "the server gave no reason")
    details = error.get("details") or {}
    match error.get("code"):
        case "INVALID_MODEL" if details.get("available_models"):
            return f"{message} Available: {', '.join(details['available_models'])}."
        case "INVALID_MODEL" if "available_models" in details:
            return f"{message} The store is empty: bitinglip models pull REPO."
        case "INVALID_API_KEY" if not has_key:
            return "the server wants an API key; put one into BITINGLIP_API_KEY"
        case "INVALID_API_KEY" | "EXPIRED_API_KEY":
            return "the server does not accept the API key; check BITINGLIP_API_KEY, or admin.key"
        case "INTERNAL_ERROR":
            return f"{message} ({error.get('request_id')})"
    said = not retry_after or "try again in" in message
    return message if said else f"{message} Try again in {retry_after} s."


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Yield the name and the data of each server-sent event.

    Lines end at line feeds only: other characters that Python takes for line ends may stand
    in the JSON.
    """
    name, rest = "", b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise Failure("the server's answer is too large")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"event":
                name = value.strip().decode("utf-8", "replace")
            elif field == b"data":
                yield name, _event_data(value)
                name = ""


def _event_data(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Failure("the server's answer cannot be read; is it another version?") from error
    return found if isinstance(found, dict) else {}


def path_of(*parts: str) -> str:
    """Return a path below /api/v1; an id may hold slashes but cannot leave its collection."""
    for part in parts:
        if not part or any(name in ("", ".", "..") for name in part.split("/")):
            raise Failure(f"{part!r} is not a valid name")
    return "/api/v1/" + "/".join(quote(part, safe="/") for part in parts)


def _json(answer: "httpx.Response") -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
