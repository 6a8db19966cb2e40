"""The models, as the official client lists them."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.access.scopes import Scope
from bitinglip.api.auth import requires_scope
from bitinglip.api.body import json_response
from bitinglip.api.lookup import find_model
from bitinglip.api.paging import check_query
from bitinglip.api.services import services_of
from bitinglip.wire.admin import openai_model

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("")
@requires_scope(Scope.MODELS_READ)
async def list_models(request: Request) -> Response:
    """All models of the store."""
    check_query(request)
    models = [openai_model(manifest) for manifest in services_of(request).store.list()]
    return json_response({"object": "list", "data": models})


@router.get("/{model_id:path}")
@requires_scope(Scope.MODELS_READ)
async def get_model(request: Request, model_id: str) -> Response:
    """One model; ids may hold one slash."""
    return json_response(openai_model(find_model(services_of(request), model_id)))
