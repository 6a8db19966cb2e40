"""Serves the dashboard at /: static files of this installation, under a strict CSP.

The page asks for addresses below a digest of all files, so these may be cached for good and never
mix with those of another version. Everything is read once, when the server is built.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import bitinglip
from bitinglip.errors import NotFound
from bitinglip.settings import Settings

FOLDER = Path(bitinglip.__file__).parent / "dashboard"
PAGE = "index.html"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
}
_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_MAIN = "js/main.js"
_STATIC_IMPORT = re.compile(rb"""\bfrom\s*["'](\.[^"'\n]+)["']""")


class File(NamedTuple):
    """Holds a file as it is sent."""

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request, cache: str) -> Response:
        """Send the file, or 304 to a browser that has it."""
        headers = {
            "content-security-policy": POLICY,
            "cache-control": cache,
            "etag": self.etag,
            "cross-origin-opener-policy": "same-origin",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def dashboard(settings: Settings) -> APIRouter:
    """Return the routes of the dashboard; none if the settings turn it off."""
    router = APIRouter(include_in_schema=False)
    if not settings.dashboard.enabled:
        return router
    files = read_files()
    digest = _digest(file.body for file in files.values())
    page = _page(files, digest, asks=settings.security.require_api_key)
    del files[PAGE]

    @router.get("/")
    async def show(request: Request) -> Response:
        """Show the dashboard."""
        return page.response(request, _ASK_AGAIN)

    @router.get("/dashboard/{files_digest}/{name:path}")
    async def send_file(request: Request, files_digest: str, name: str) -> Response:
        """Send a file of the dashboard. Raises NotFound, for those of another version too."""
        if files_digest != digest or name not in files:
            raise NotFound()
        return files[name].response(request, _FOR_GOOD)

    return router


def read_files() -> dict[str, File]:
    """Read all files of the dashboard, by their path below its folder."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _file(path) for path in paths}


def _file(path: Path) -> File:
    body = path.read_bytes()
    return File(body, _TYPES[path.suffix], f'"{_digest([body])}"')


def _page(files: Mapping[str, File], digest: str, *, asks: bool) -> File:
    """Fill in the page. Its addresses are relative, so that a proxy may put a path before them."""
    folder = f"dashboard/{digest}"
    told = {
        "version": bitinglip.__version__,
        "files": folder,
        "sign-in": "key" if asks else "none",
        "preloads": "\n".join(
            f'<link rel="modulepreload" href="{folder}/{name}">'
            for name in sorted(_imported(files, _MAIN))
        ),
    }
    text = files[PAGE].body.decode()
    for mark, value in told.items():
        text = text.replace(f"{{{{{mark}}}}}", value)
    body = text.encode()
    return files[PAGE]._replace(body=body, etag=f'"{_digest([body])}"')


def _imported(files: Mapping[str, File], name: str) -> set[str]:
    """Return the modules that come with one: browsers would find them one after the other."""
    found: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            imports = _STATIC_IMPORT.findall(files[module].body)
            left += [normpath(join(dirname(module), each.decode())) for each in imports]
    return found


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]
