"""Serves downloads: ask for one, list, show, watch and cancel them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as HttpScope

from bitinglip.access.limits.policy import LimitClass
from bitinglip.access.scopes import Scope
from bitinglip.api.audited import audited, note_change
from bitinglip.api.auth import ANONYMOUS, caller_of, requires_scope
from bitinglip.api.body import json_response, read_body
from bitinglip.api.documentation import json_body, list_query
from bitinglip.api.paging import check_query, read_page
from bitinglip.api.services import Services, services_of
from bitinglip.api.stream_writer import ClientGone, Connection, StreamWriter
from bitinglip.audit.entry import Action
from bitinglip.downloads.download import Download, Requester
from bitinglip.errors import DownloadNotFound, InsufficientScope, InvalidRequest
from bitinglip.results.streams import sse
from bitinglip.wire.admin.downloads import DownloadRequest, download_info
from bitinglip.wire.model_lookup import check_model
from model_store.hub.aliases import repo_of

router = APIRouter(prefix="/api/v1/models", tags=["models"])

_CHOICES = [
    {"name": name, "in": "query", "schema": {"type": "boolean", "default": False}}
    for name in ("purge", "forget")
]


@router.post("/download", status_code=202, openapi_extra=json_body(DownloadRequest))
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.MODEL_DOWNLOAD)
async def download_model(request: Request) -> Response:
    """Download a model from the hub; it goes on without its client, and after a restart.

    Joins a download of the same that waits or runs; takes up one that failed or was cancelled.
    """
    body = await read_body(request, DownloadRequest)
    home = services_of(request).home.root
    caller = caller_of(request)
    wanted = await asyncio.to_thread(body.wanted, lambda name: repo_of(name, home))
    check_model(caller, wanted.name)
    if body.allow_pickles and not caller.may(Scope.ADMIN):
        raise InsufficientScope(
            "Only an admin may allow pickled weights.", details={"required": Scope.ADMIN}
        )
    download = await services_of(request).downloads.ask(
        wanted, requester_of(request), body.priority
    )
    return accepted(request, download)


def requester_of(request: Request) -> Requester:
    caller = caller_of(request)
    return Requester(caller.key_id, caller.name, caller.models)


def accepted(request: Request, download: Download) -> Response:
    """Answer that a download is on its way, and enter what was asked for in the audit log."""
    wanted = download.wanted
    after = {
        "repo": wanted.repo,
        "revision": wanted.revision,
        "task": wanted.task,
        "priority": download.priority,
        "download": download.id,
        "allow_pickles": wanted.allow_pickles,
    }
    note_change(request, target=wanted.name, after=after)
    answer = json_response(download_info(download), 202)
    root = request.scope["root_path"]
    answer.headers["location"] = f"{root}{router.prefix}/downloads/{download.id}"
    return answer


@router.get("/downloads", openapi_extra=list_query())
@requires_scope(Scope.CLUSTER_WRITE)
async def list_downloads(request: Request) -> Response:
    """List downloads, the newest first."""
    page, caller = read_page(request), caller_of(request)
    may_see = None if caller.models is None else caller.may_use
    found, total = await services_of(request).downloads.page(
        may_see, limit=page.limit, offset=page.offset
    )
    return page.part([download_info(each) for each in found], total)


@router.get("/downloads/{download_id}")
@requires_scope(Scope.CLUSTER_WRITE)
async def get_download(request: Request, download_id: str) -> Response:
    """Show one download: its state, and how far each file is."""
    return json_response(download_info(await _find(request, download_id)))


@router.delete("/downloads/{download_id}", status_code=204, openapi_extra={"parameters": _CHOICES})
@requires_scope(Scope.CLUSTER_WRITE)
@audited(Action.DOWNLOAD_CANCEL)
async def cancel_download(request: Request, download_id: str) -> Response:
    """Cancel a download; one that has ended stays as it is.

    What has come is kept, to be taken up by the next request for it; ``purge`` removes it.
    ``forget`` takes the download off the list, too.
    """
    check_query(request, "purge", "forget")
    purge, forget = _read_flag(request, "purge"), _read_flag(request, "forget")
    before = (await _find(request, download_id)).state
    downloads = services_of(request).downloads
    download = await downloads.cancel(download_id, purge=purge)
    if forget:
        await downloads.forget(download_id)
    note_change(
        request,
        target=download.wanted.name,
        before={"state": before},
        after={
            "state": download.state,
            "download": download.id,
            "purge": purge,
            "forget": forget,
        },
    )
    return Response(status_code=204)


@router.get("/downloads/{download_id}/events")
@requires_scope(Scope.CLUSTER_WRITE, LimitClass.STREAM)
async def watch_download(request: Request, download_id: str) -> Response:
    """Follow a download: ``progress`` events, then one of completed, failed and cancelled."""
    check_query(request)
    await _find(request, download_id)
    return _Events(request, download_id)


async def _find(request: Request, download_id: str) -> Download:
    """Return a download of a model that the caller may use. Raises DownloadNotFound."""
    download = await services_of(request).downloads.get(download_id)
    if not caller_of(request).may_use(download.wanted.name):
        raise DownloadNotFound(details={"download": download_id[:64]})
    return download


def _read_flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return text == "true"


class _Events(Response):
    """Streams a download's progress until it has ended; the download goes on without it."""

    def __init__(self, request: Request, download_id: str) -> None:
        self.background = None
        self._services: Services = services_of(request)
        self._credential = caller_of(request).credential
        self._is_anonymous = caller_of(request) is ANONYMOUS
        self._download_id = download_id

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        interval = self._services.settings.server.stream_comment_interval
        writer = StreamWriter(scope, send, media_type=None, interval=interval)
        with suppress(ClientGone):
            async with aclosing(self._states()) as states:
                with Connection(receive, writer.idle):
                    await _tell(writer, states)

    async def _states(self) -> AsyncGenerator[Download]:
        """Yield the download's states for as long as the watcher may see them."""
        async with aclosing(self._services.downloads.watch(self._download_id)) as states:
            async for download in states:
                if not self._may_see(download):
                    return
                yield download

    def _may_see(self, download: Download) -> bool:
        return self._is_anonymous or self._services.tokens.grants(
            self._credential, Scope.CLUSTER_WRITE, download.wanted.name
        )


async def _tell(writer: StreamWriter, states: AsyncGenerator[Download]) -> None:
    """Write an event for each state; the last one is that of the end, if it comes."""
    await writer.begin()
    async for download in states:
        name = download.state if download.ended else "progress"
        data = msgspec.json.encode(download_info(download))
        await writer.write(sse(data, name), last=download.ended)
        if download.ended:
            return
    await writer.write(b"", last=True)
