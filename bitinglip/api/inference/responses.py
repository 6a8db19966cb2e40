"""Responses, on OpenAI's surface: made, and where the client does not object, kept."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial, wraps

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import (
    Handler,
    authorize_limited,
    caller_of,
    declare_scope,
    requires_scope,
)
from bitinglip.api.body import input_memory, json_response, note_fields, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.guarding import checked_job
from bitinglip.api.job_context import asking
from bitinglip.api.job_response import FollowedJob, JobResponse
from bitinglip.api.request_context import context_of, request_id_of
from bitinglip.api.services import Services, services_of
from bitinglip.errors import InternalError, InvalidRequest, TaskNotFound
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Claim, Job
from bitinglip.tasks.responses import OPEN, KeptResponse
from bitinglip.wire.openai_lists import page_of
from bitinglip.wire.responses.items import Shown
from bitinglip.wire.responses.output import failed
from bitinglip.wire.responses.prepared import (
    Keep,
    PreparedResponse,
    find_response,
    prepare_response,
)
from bitinglip.wire.responses.request import ResponsesRequest, task_id
from bitinglip.wire.responses.view import InputTokensView, ResponseView

_MOST_DIGITS = 9

router = APIRouter(prefix="/v1/responses", tags=["openai"])


@router.post("", openapi_extra=json_body(ResponsesRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def create_response(request: Request) -> Response:
    """Make a response, as one answer, as a stream of events, or in the background."""
    body = await read_body(request, ResponsesRequest)
    services, asked = services_of(request), await _asked(request, body)
    echo = body.echo(asked.job)
    keep = Keep(services.responses, asked, echo) if body.stores else None
    if keep is not None:
        await services.responses.check_space(asked.items)
    job = await services.pictures.stored(asked.job, asked.manifest, field="input")
    if keep is not None and body.background:
        return await _in_background(request, keep, job, stream=bool(body.stream))
    view = partial(ResponseView, request_id=request_id_of(request), echo=echo, keep=keep)
    return JobResponse(services.dispatcher, services.uploads, job, view)


@router.post("/input_tokens", openapi_extra=json_body(ResponsesRequest))
@requires_scope(Scope.TEXT, LimitClass.INFERENCE)
async def count_input_tokens(request: Request) -> Response:
    """Count the tokens that a response would be made from."""
    body = await read_body(request, ResponsesRequest)
    services, asked = services_of(request), await _asked(request, body)
    work = msgspec.structs.replace(asked.job.work, count_only=True, stream=False)
    job = msgspec.structs.replace(asked.job, work=work)
    job = await services.pictures.stored(job, asked.manifest, field="input")
    view = partial(InputTokensView, request_id=request_id_of(request))
    return JobResponse(services.dispatcher, services.uploads, job, view)


def _limited_as_it_streams(handler: Handler) -> Handler:
    """Let a route take one of its key's places where it follows a stream, as a WebSocket does."""

    @wraps(handler)
    async def guarded(request: Request, response_id: str) -> Response:
        limits = LimitClass.STREAM if _streams(request) else LimitClass.LIGHT
        await authorize_limited(request, Scope.TEXT, limits)
        return await handler(request, response_id)

    return declare_scope(guarded, Scope.TEXT, LimitClass.STREAM)


def _streams(request: Request) -> bool:
    return request.query_params.get("stream") == "true"


@router.get("/{response_id}")
@_limited_as_it_streams
async def get_response(request: Request, response_id: str) -> Response:
    """Show a stored response, or follow the stream of one that is being made."""
    row = await _find(request, response_id)
    if _streams(request):
        after = _number(request.query_params, "starting_after", -1)
        return await _follow(request, row.response, after=after)
    return json_response(await _shown(services_of(request), row))


@router.delete("/{response_id}")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def delete_response(request: Request, response_id: str) -> Response:
    """Delete a stored response; one that is being made is cancelled first."""
    services, row = services_of(request), await _find(request, response_id)
    if row.status in OPEN:
        await _cancel(services, row)
    await services.responses.delete(row.id, task_id(row.id))
    return json_response({"id": row.id, "object": "response", "deleted": True})


@router.post("/{response_id}/cancel")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancel a response that is made in the background; one that has ended stays as it is."""
    services, row = services_of(request), await _find(request, response_id)
    if not row.response["background"]:
        raise InvalidRequest("Only a response that is made in the background can be cancelled.")
    if row.status in OPEN:
        row = await _cancel(services, row)
    return json_response(await _shown(services, row))


@router.get("/{response_id}/input_items")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def list_input_items(request: Request, response_id: str) -> Response:
    """List the items that a stored response was made from, the last one first."""
    row, query = await _find(request, response_id), request.query_params
    limit = _number(query, "limit", 20)
    if not 1 <= limit <= 100:
        raise InvalidRequest("'limit' must be 1 to 100.", param="limit")
    items = row.input if query.get("order") == "asc" else row.input[::-1]
    ids = [item["id"] for item in items]
    after = query.get("after")
    begin = ids.index(after) + 1 if after in ids else 0
    return json_response(page_of(items[begin : begin + limit + 1], limit))


async def _asked(request: Request, body: ResponsesRequest) -> PreparedResponse:
    """Make the job. Raises as ``prepare_response`` does."""
    kept = services_of(request).responses
    asked = await prepare_response(asking(request), body, kept, input_memory(request))
    if asked.ignored:
        note_fields(request, asked.ignored)
    return asked


async def _in_background(request: Request, keep: Keep, job: Job, *, stream: bool) -> Response:
    """Accept the response as a task; its row is stored before a client can ask for it."""
    services, context = services_of(request), context_of(request.scope)
    context.job = (job.model, None)
    if job.guard is not None:
        job = await checked_job(request.scope, job)
    try:
        await keep.write(keep.echo, job)
    except BaseException:
        services.pictures.discard(job)
        raise
    try:
        await services.tasks.accept(msgspec.structs.replace(job, response_id=keep.echo["id"]))
    except Exception:  # whatever the fault, a response that no task makes must not stay
        await keep.delete()
        raise
    context.job = (job.model, job.id)
    if stream:
        return await _follow(request, keep.echo)
    return json_response(keep.echo)


async def _follow(request: Request, echo: Shown, *, after: int = -1) -> Response:
    """Stream the events of a background response. Raises InvalidRequest once they are gone."""
    tasks, job_id = services_of(request).tasks, task_id(echo["id"])
    event_log = await tasks.event_log(job_id) if echo["background"] else None
    if event_log is None:
        raise InvalidRequest(
            "The stream of this response has ended; ask for it without 'stream'.", param="stream"
        )

    async def ended_on_disk(_response: Shown, _event_log: EventLog) -> None:
        await tasks.finished(job_id)

    context_of(request.scope).job = (echo["model"], job_id)
    view = ResponseView(
        event_log, request_id_of(request), echo=echo, keep=ended_on_disk, after=after
    )
    claim = Claim(caller_of(request).credential, echo["model"], "text")
    return FollowedJob(event_log, view, claim)


async def _cancel(services: Services, row: KeptResponse) -> KeptResponse:
    with suppress(TaskNotFound):
        await services.tasks.cancel(task_id(row.id))
    return await services.responses.get(row.id)


async def _find(request: Request, response_id: str) -> KeptResponse:
    """Return a response of the caller's. Raises as ``find_response`` does."""
    return await find_response(services_of(request).responses, caller_of(request), response_id)


async def _shown(services: Services, row: KeptResponse) -> Shown:
    """Return a response as it is now; of one that has not ended its task tells."""
    if row.status not in OPEN:
        return row.response
    try:
        task = await services.tasks.get(task_id(row.id))
    except TaskNotFound:  # its row has expired, or the server ended before it was written
        return failed(row.response, InternalError("The response was lost."))
    if task.error is not None:
        return failed(row.response, task.error)
    if task.status == "completed":
        return (await services.responses.get(row.id)).response
    status = {"running": "in_progress", "cancelled": "cancelled"}.get(task.status, "queued")
    return {**row.response, "status": status}


def _number(query: Mapping[str, str], name: str, otherwise: int) -> int:
    value = query.get(name)
    if value is None:
        return otherwise
    if not value.isdecimal() or len(value) > _MOST_DIGITS:
        raise InvalidRequest(f"'{name}' must be a number.", param=name)
    return int(value)
