"""Serves the page at /docs: Swagger UI from files of this installation, under a strict CSP.

People paste admin keys into this page, so it loads and runs nothing that we do not serve.
"""

import importlib.util
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from bitinglip.errors import NotFound

router = APIRouter(include_in_schema=False)

_PACKAGE = "fastapi_offline"  #: it ships Swagger UI; only its files are used
#: name in the address -> media type
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_START = "start.js"
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {"content-security-policy": _POLICY}
#: addresses are relative, so that a proxy may put a path before them
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>BitingLip API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


@router.get("/docs")
async def docs_page() -> Response:
    """Show the documentation of the API."""
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)


@router.get("/docs/{name}")
async def docs_file(name: str) -> Response:
    """Send a file of the documentation's page. Raises NotFound."""
    if name == _START:
        return Response(_SCRIPT, media_type="text/javascript", headers=_HEADERS)
    if name not in _FILES:
        raise NotFound()
    return FileResponse(
        _folder() / name,
        media_type=_FILES[name],
        headers={**_HEADERS, "cache-control": "public, max-age=86400"},
    )


@cache
def _folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "static"
