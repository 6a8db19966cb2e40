"""Routes that are called without FastAPI's machinery."""

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bitinglip import api
from bitinglip.api.direct_routes import direct_routes
from bitinglip.settings import Settings


def _application() -> api.Application:
    app = api.Application(docs_url=None, redoc_url=None)
    api.mount(app, Settings())
    return app


def test_direct_routes_are_all_that_take_a_json_body() -> None:
    direct = {path for _, path in direct_routes(_application().routes)}
    assert {
        "/api/v1/inference/text-generation",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/images/generations",
        "/v1/audio/speech",
    } <= direct


def test_direct_routes_are_documented_like_all_others() -> None:
    app = _application()
    paths = app.openapi()["paths"]
    for (method, path), route in direct_routes(app.routes).items():
        if route.include_in_schema:
            assert paths[path][method.lower()]["responses"], path


def test_direct_routes_take_nothing_but_the_request() -> None:
    router = APIRouter()

    async def plain(request: Request) -> Response:  # noqa: ARG001  its name counts
        return Response()

    async def with_value(request: Request, name: str) -> Response:  # noqa: ARG001  its name counts
        return Response()

    router.get("/plain")(plain)
    router.get("/query")(with_value)
    router.get("/path/{name}")(with_value)
    router.get("/depends", dependencies=[Depends(plain)])(plain)
    assert list(direct_routes(router.routes)) == [("GET", "/plain")]


def test_direct_route_behind_another_that_takes_its_path_is_left_to_the_router() -> None:
    router = APIRouter()

    async def handler(request: Request) -> Response:  # noqa: ARG001  its name counts
        return Response()

    router.get("/things/{name}")(handler)
    router.get("/things/special")(handler)
    router.post("/things/special")(handler)
    assert list(direct_routes(router.routes)) == [("POST", "/things/special")]
