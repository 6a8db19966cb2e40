"""Serves batches of requests, on OpenAI's surface."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.auth import caller_of, requires_scope
from bitinglip.api.batches.client_files import find_file
from bitinglip.api.batches.owned import owner_of, read_limit
from bitinglip.api.body import json_response, read_body
from bitinglip.api.documentation import json_body
from bitinglip.api.services import services_of
from bitinglip.batches.files import INPUT
from bitinglip.errors import InvalidRequest, NotFound
from bitinglip.wire.batches import Batch, BatchRequest, shown_batch
from bitinglip.wire.model_lookup import check_owner
from bitinglip.wire.openai_lists import page_of

_LISTED, _MOST_LISTED = 20, 100

router = APIRouter(prefix="/v1/batches", tags=["openai"])


@router.post("", openapi_extra=json_body(BatchRequest))
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def create_batch(request: Request) -> Response:
    """Run the requests of a file at low priority; a restart of the server ends none of them."""
    body = await read_body(request, BatchRequest)
    file = await find_file(request, body.input_file_id)
    if file.purpose != INPUT:
        raise InvalidRequest("This file is no input of a batch.", param="input_file_id")
    return _shown(await services_of(request).batches.create(body, caller_of(request)))


@router.get("")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def list_batches(request: Request) -> Response:
    """List the caller's batches, the newest first; an admin sees all."""
    limit = read_limit(request, _LISTED, most=_MOST_LISTED)
    batches = await services_of(request).batches.list(
        key_id=owner_of(request), after=request.query_params.get("after"), most=limit + 1
    )
    return json_response(page_of([shown_batch(each) for each in batches], limit))


@router.get("/{batch_id}")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def get_batch(request: Request, batch_id: str) -> Response:
    """Show a batch: its state, and how many of its requests have ended."""
    return _shown(await _find(request, batch_id))


@router.post("/{batch_id}/cancel")
@requires_scope(Scope.TEXT, LimitClass.LIGHT)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Cancel a batch; the results that there are stay."""
    await _find(request, batch_id)
    return _shown(await services_of(request).batches.cancel(batch_id))


async def _find(request: Request, batch_id: str) -> Batch:
    """Return a batch of the caller's. Raises NotFound."""
    kept = await services_of(request).batches.get(batch_id)
    check_owner(caller_of(request), kept.key_id, "text", _missing)
    return kept.batch


def _missing() -> NotFound:
    return NotFound("There is no batch with this id; batches expire.")


def _shown(batch: Batch) -> Response:
    return json_response(shown_batch(batch))
