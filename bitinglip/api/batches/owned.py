"""Lists what callers own, on OpenAI's surface."""

from starlette.requests import Request

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of
from bitinglip.errors import InvalidRequest

_MOST_DIGITS = 6


def owner_of(request: Request) -> str | None:
    """Return the key whose files and batches the caller may see; None if all keys'."""
    caller = caller_of(request)
    return None if caller.may(Scope.ADMIN) else caller.key_id


def read_limit(request: Request, default: int, *, most: int) -> int:
    """Read how many things a list may hold. Raises InvalidRequest."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS and 1 <= int(text) <= most:
        return int(text)
    raise InvalidRequest(f"'limit' must be 1 to {most}.", param="limit")
