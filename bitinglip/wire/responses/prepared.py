"""Turns a request for a response into a job, after what it continues and what it refers to."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.errors import NotFound
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.tasks.responses import (
    MOST_BYTES,
    MOST_TURNS,
    KeptResponse,
    Responses,
    missing,
    too_much,
)
from bitinglip.wire.model_lookup import check_model, check_owner
from bitinglip.wire.prepared import Asking
from bitinglip.wire.responses.items import Shown, shown_items
from bitinglip.wire.responses.kept import kept_input, referred, resolved
from bitinglip.wire.responses.request import ResponsesRequest, id_of_response
from bitinglip.wire.text.length import check_length
from model_store.manifest import Manifest
from workers import protocol

Grow = Callable[[int], None]
#: counts input of the caller's until the block is left; see ``InputMemory.growing``
Memory = AbstractContextManager[Grow]


class PreparedResponse(NamedTuple):
    """Holds the job that a request asks for, and the items that the request itself has brought.

    ``ignored``: fields that were ignored for this model.
    """

    job: Job
    items: list[Shown]
    ignored: list[str]
    manifest: Manifest  #: of the model


async def prepare_response(
    asking: Asking, body: ResponsesRequest, kept: Responses, memory: Memory
) -> PreparedResponse:
    """Prepare a response; what is read of the kept ones for it counts as input of the caller's.

    Raises InvalidRequest, ContextLengthExceeded, QueueFull, or what is wrong with a model.
    """
    manifest, new_id = asking.model_of(body.model, "text"), new_task_id()
    context = asking.context_of(body.model)
    own_items = shown_items(body.input, id_of_response(new_id))
    with memory as grow:
        items = await _with_references(asking.caller, kept, own_items, grow)
        history = await _history(asking.caller, kept, body.previous_response_id, grow)
        job = body.to_job(context, [*history, *items], new_id)
        check_length(job, manifest, context.model_settings.max_context)
    return PreparedResponse(job, items, body.unknown_switches(manifest.template_switches), manifest)


class Keep:
    """Keeps one response, with what the guard has let through of its input."""

    def __init__(self, kept: Responses, asked: PreparedResponse, echo: Shown) -> None:
        self.job = asked.job
        self.echo = echo
        self._kept = kept
        self._items = asked.items

    async def __call__(self, response: Shown, event_log: EventLog) -> None:
        await self.write(response, event_log.job)

    async def write(self, response: Shown, checked: Job) -> None:
        """Write it. Raises DiskFull or DatabaseUnavailable."""
        sent, read = self.job.work, checked.work
        assert isinstance(sent, protocol.TextJob)
        assert isinstance(read, protocol.TextJob)
        instructed = bool(self.echo["instructions"])
        changed = kept_input(sent, read, instructed=instructed, response_id=response["id"])
        previous = self.echo["previous_response_id"] if changed is None else None
        items = self._items if changed is None else changed
        await self._kept.add(checked.key_id, items, response, previous_id=previous)

    async def delete(self) -> None:
        await self._kept.delete(self.echo["id"], self.job.id)


async def find_response(kept: Responses, caller: Caller, response_id: str) -> KeptResponse:
    """Return a response of the caller's. Raises NotFound, InsufficientScope or ModelNotAllowed."""
    row = await kept.get(response_id)
    check_owner(caller, row.key_id, "text", missing)
    check_model(caller, row.model)
    return row


async def _history(
    caller: Caller, kept: Responses, previous_id: str | None, grow: Grow
) -> list[Shown]:
    """Return all items before the request's own.

    Raises InvalidRequest, ContextLengthExceeded, ModelNotAllowed or QueueFull.
    """
    if previous_id is None:
        return []
    owner = None if caller.may(Scope.ADMIN) else caller.key_id  # None: any key's
    turns = await kept.turns(previous_id, owner)
    for turn in turns:
        check_model(caller, turn.model)
    grow(sum(turn.size for turn in turns))
    return await asyncio.to_thread(lambda: [item for turn in turns for item in turn.items()])


async def _with_references(
    caller: Caller, kept: Responses, items: list[Shown], grow: Grow
) -> list[Shown]:
    """Put stored items in the places of those that refer to them.

    Raises InvalidRequest, ContextLengthExceeded, InsufficientScope, ModelNotAllowed or QueueFull.
    """
    known: dict[str, Shown] = {}
    named, size = sorted(referred(items)), 0
    if len(named) > MOST_TURNS:
        raise too_much("input")
    for each in named:
        with suppress(NotFound):
            row = await find_response(kept, caller, each)
            size += row.size
            if size > MOST_BYTES:
                raise too_much("input")
            grow(row.size)
            known |= {item["id"]: item for item in await asyncio.to_thread(row.items)}
    return resolved(items, known)
