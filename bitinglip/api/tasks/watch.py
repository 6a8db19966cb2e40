"""Sends a task's events over a WebSocket: each event once, in order, from the first on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from bitinglip.access.keys import Caller
from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.access.tickets import LIFETIME
from bitinglip.api.auth import (
    ANONYMOUS,
    admit,
    caller_of,
    check_address,
    check_inference,
    declare_scope,
    failed_login,
    has_credential,
    identify,
    requires_inference_scope,
)
from bitinglip.api.body import json_response, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.lookup import find_task, with_files
from bitinglip.api.paging import check_query
from bitinglip.api.request_context import context_of, request_id_of
from bitinglip.api.services import services_of
from bitinglip.errors import BitingLipError, InvalidRequest, InvalidToken, IpNotAllowed
from bitinglip.scheduling.job import Claim
from bitinglip.wire.admin.tickets import WatchTicketRequest
from bitinglip.wire.events import NativeView
from bitinglip.wire.response import final_event

router = APIRouter(tags=["tasks"])

SEND_TIMEOUT = 30.0  #: seconds; a watcher that reads nothing for so long is disconnected
#: Bytes of files in a message: in base64 it is less than the megabyte that clients take by default.
_MOST_INLINE = 700 << 10
_DONE, _NOT_ALLOWED, _GONE, _RESTART, _TOO_SLOW = 1000, 1008, 1011, 1012, 1013


@router.post("/api/v1/auth/ws-ticket", openapi_extra=json_body(WatchTicketRequest))
@requires_inference_scope
async def make_ticket(request: Request) -> Response:
    """Issue a ticket that watches one task once, for browsers, which cannot send a key."""
    body = await read_body(request, WatchTicketRequest)
    caller = caller_of(request)
    task = await find_task(request, caller, body.task_id)
    ticket = services_of(request).tickets.issue(caller, task.id)
    return json_response({"ticket": ticket, "expires_in": int(LIFETIME)})


async def watch(socket: WebSocket, task_id: str) -> None:
    """Send a task's events as ``{"event", "data"}``; refusals are plain HTTP responses."""
    check_query(socket, "ticket")
    watcher = await _watcher(socket, task_id)
    await admit(socket, watcher, LimitClass.STREAM)
    task = await find_task(socket, check_inference(watcher), task_id)
    context_of(socket.scope).job = (task.model, task.id)
    claim = Claim(watcher.credential, task.model, task.kind)
    with services_of(socket).revocation.connection(claim) as key_ended:
        try:
            await socket.accept()
            await _run(socket, task_id, key_ended)
        except (WebSocketDisconnect, OSError):
            return  # the watcher has disconnected; the task goes on


for _path in ("/ws/inference/{task_id}", "/api/v1/ws/inference/{task_id}"):
    router.websocket(_path)(declare_scope(watch, Scope.TEXT, LimitClass.STREAM))


async def _watcher(socket: WebSocket, task_id: str) -> Caller:
    """Identify the watcher by key or by ticket."""
    ticket = socket.query_params.get("ticket")
    if ticket is None:
        return identify(socket)
    if has_credential(socket):
        raise InvalidRequest("The request holds a key and a ticket; send one.", param="ticket")
    services = services_of(socket)
    try:
        caller = await services.tickets.take(ticket, task_id)
        if caller.key_id == ANONYMOUS.key_id:
            return ANONYMOUS
        present = services.keys.caller(caller.credential)
        if present is None or not services.tokens.is_valid(caller.credential):
            raise InvalidToken()
        check_address(socket, present)
    except (InvalidToken, IpNotAllowed) as error:
        raise failed_login(socket, error) from None
    scopes = frozenset(scope for scope in caller.scopes if present.may(scope))
    return replace(present, scopes=scopes, token=caller.token)


async def _run(socket: WebSocket, task_id: str, key_ended: asyncio.Event) -> None:
    """Send until the task or the watcher's key ends, or the watcher disconnects.

    Messages of the watcher are dropped.
    """
    sending = asyncio.create_task(_send_events(socket, task_id))
    disconnect = asyncio.create_task(_wait_disconnect(socket))
    revoked = asyncio.create_task(key_ended.wait())
    tasks: list[asyncio.Task[Any]] = [sending, disconnect, revoked]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not sending.cancelled():
        await socket.close(sending.result())
    elif key_ended.is_set():
        await socket.close(_NOT_ALLOWED)


async def _wait_disconnect(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _send_events(socket: WebSocket, task_id: str) -> int:
    """Send all events; return the code to close the connection with."""
    try:
        async for name, data in _events(socket, task_id):
            message = b'{"event":"%b","data":%b}' % (name.encode(), data)
            async with asyncio.timeout(SEND_TIMEOUT):
                await socket.send_text(message.decode())
    except TimeoutError:
        return _TOO_SLOW
    except DeferredTask:
        return _RESTART
    except BitingLipError:
        return _GONE  # its row expired at this very moment
    return _DONE


async def _events(socket: WebSocket, task_id: str) -> AsyncIterator[tuple[str, bytes]]:
    """Yield a task's events; the final one only once it is stored."""
    tasks, request_id = services_of(socket).tasks, request_id_of(socket)
    event_log = await tasks.event_log(task_id)
    if event_log is not None:
        view = NativeView(event_log, request_id, services_of(socket).files, _MOST_INLINE)
        async for events in event_log.batches():
            for event in events:
                if event is event_log.final:
                    if not await tasks.finished(task_id):
                        raise DeferredTask
                    await view.prepare_final()
                yield view.event(event)
        return
    if not await tasks.finished(task_id):
        raise DeferredTask
    task = await tasks.get(task_id)
    told = await with_files(services_of(socket), task, most=_MOST_INLINE)
    yield final_event(told, request_id)


class DeferredTask(Exception):
    """The server stops before the task has begun; the next start runs it."""
