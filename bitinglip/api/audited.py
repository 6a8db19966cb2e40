"""Enters what routes change, and whom they refuse, in the audit log."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from bitinglip import errors
from bitinglip.access import credentials
from bitinglip.access.keys import Caller
from bitinglip.access.limits.logins import network_of
from bitinglip.api.errors import to_error
from bitinglip.api.request_context import request_id_of
from bitinglip.api.services import services_of
from bitinglip.audit.entry import Action, Actor, Entry

_CHANGE = "bitinglip.change"
_LOCAL = "local"  #: the address of a program that comes over the home's Unix socket
#: statuses of failures that are entered; other refusals have changed nothing and are no news
_FAILED = (409, 507)
Handler = Callable[..., Awaitable[Response]]
_actions: dict[object, Action] = {}  #: by handler; filled while the routes' modules are imported


@dataclass(slots=True)
class _Change:
    """Holds what a handler tells of its change."""

    target: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def audited(action: Action, *, in_transaction: bool = False) -> Callable[[Handler], Handler]:
    """Enter what a route has done before it is answered, and that it failed.

    Below the route's scope. With ``in_transaction`` the handler's change brings its entry along.
    Where the entry cannot be written the answer is that error, although the thing was done: the
    entry is written once the database works again.
    """

    def wrap(handler: Handler) -> Handler:
        @wraps(handler)
        async def entered(request: Request, **values: Any) -> Response:
            try:
                answer = await handler(request, **values)
            except ClientDisconnect:
                raise
            except Exception as error:
                _enter_failure(request, action, to_error(error))
                raise
            if not in_transaction:
                await services_of(request).audit.record(_entry(request, action))
            return answer

        _actions[inspect.unwrap(handler)] = action
        return entered

    return wrap


def declared_action(route: BaseRoute) -> Action | None:
    """Return what a route is audited as; None if it is not."""
    handler = getattr(route, "endpoint", None)
    return None if handler is None else _actions.get(inspect.unwrap(handler))


def note_change(
    request: Request,
    *,
    target: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Say what a handler has changed; the target is the path's parameter by default."""
    request.scope[_CHANGE] = _Change(target, before, after)


def actor_of(request: HTTPConnection) -> Actor:
    """Return the caller of an admitted request as the audit log names them."""
    return actor(request, request.scope["bitinglip.caller"])


def actor(request: HTTPConnection, caller: Caller | None) -> Actor:
    """Return who sent a request, and from where; None if the sender is not known."""
    return Actor(
        id="unknown" if caller is None else caller.key_id,
        name="" if caller is None else caller.name,
        token="" if caller is None else caller.token,
        address=request.client.host if request.client is not None else _LOCAL,
        request_id=request_id_of(request),
        user_agent=request.headers.get("user-agent", ""),
    )


def refuse_login(request: HTTPConnection, credential: str | None, code: str) -> None:
    """Count a wrong credential; of a well-formed key the public part is kept."""
    sender = actor(request, None)
    target = credentials.parse(credential or "") or ""
    services_of(request).audit.refusals.note(
        Action.AUTH_REFUSED, sender, code, network=network_of(sender.address), target=target
    )


def refuse_access(request: HTTPConnection, caller: Caller, error: errors.BitingLipError) -> None:
    """Count a caller's attempt at what their key does not allow."""
    route = getattr(request.scope.get("route"), "path_format", "")
    target = f"{request.scope.get('method', 'GET')} {route}"
    code = errors.answer(error).code
    services_of(request).audit.refusals.note(
        Action.ACCESS_REFUSED, actor(request, caller), code, target=target
    )


def _enter_failure(request: Request, action: Action, error: errors.BitingLipError) -> None:
    answer = errors.answer(error)
    if answer.status == 403:
        refuse_access(request, request.scope["bitinglip.caller"], error)
    elif answer.status >= 500 or answer.status in _FAILED:
        services_of(request).audit.remember(_entry(request, action, answer.code))


def _entry(request: Request, action: Action, code: str | None = None) -> Entry:
    change = request.scope.get(_CHANGE) or _Change()
    target = change.target
    if target is None:
        target = next(map(str, request.path_params.values()), "")
    if code is not None:
        return Entry(action, actor_of(request), target, code)
    return Entry(action, actor_of(request), target, before=change.before, after=change.after)
