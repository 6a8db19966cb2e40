"""Checks the servers that answer for models, where the settings name some.

They are asked as the server asks them at a load, all at once: with the same trust in certificates,
no proxy, no redirect that is followed, and as much patience.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.checks.findings import Finding

if TYPE_CHECKING:
    import aiohttp

    from bitinglip.settings import Settings
    from bitinglip.settings.upstream import Upstream

_SECONDS = 5.0  #: for a server's whole answer
_MOST_BYTES = 8 << 20  #: of a list of models
_KEY = "it holds the key in one line, and nothing else"
_TRUST = "add its authority to those of this system, or to a file that SSL_CERT_FILE names"
_NO_LIST = "the URL usually ends with /v1; a server without such a list may answer all the same"
_UNAUTHORIZED = (401, 403)

_Asked = tuple[str, "Upstream", str, str | None]  #: a model, its settings, a URL, and the key


def upstreams(settings: "Settings") -> Iterator[Finding]:
    """Find servers that do not answer, refuse the key or lack the model, and keys not readable."""
    from workers.secret_files import SecretFileRefused, read_secret_text

    asked: list[_Asked] = []
    for name, model in settings.models.items():
        own = model.upstream
        try:
            key = None if own.key_file is None else read_secret_text(own.key_file)
        except SecretFileRefused as error:
            problem = f"models.{name}.upstream.key_file: {error}"
            yield _error(problem, "correct the setting, or the file's rights")
            continue
        if key is not None and not (key and key.isascii() and key.isprintable()):
            yield _error(f"models.{name}.upstream.key_file: {own.key_file} is no API key", _KEY)
            continue
        asked += [(name, own, url, key) for url in own.url]
    if asked:
        yield from asyncio.run(_answers(asked))


async def _answers(asked: list[_Asked]) -> list[Finding]:
    from bitinglip.upstreams.http import open_http

    async with open_http() as http:
        return await asyncio.gather(*(_server(http, *each) for each in asked))


async def _server(
    http: "aiohttp.ClientSession", name: str, own: "Upstream", url: str, key: str | None
) -> Finding:
    import aiohttp

    from bitinglip.upstreams.http import reason_of

    where, wanted = f"{name} at {url}", own.model or name
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        async with (
            asyncio.timeout(_SECONDS),
            http.get(f"{url}/models", headers=headers, allow_redirects=False) as answer,
        ):
            status, data = answer.status, bytearray()
            async for part in answer.content.iter_any():
                data += part
                if len(data) > _MOST_BYTES:
                    break
    except (aiohttp.ClientError, TimeoutError) as error:
        untrusted = isinstance(error, aiohttp.ClientSSLError)
        advice = _TRUST if untrusted else f"start it, or correct models.{name}.upstream.url"
        detail = f"{where}: {reason_of(error).rstrip('.')}"
        return Finding("upstreams", "warning", detail, advice)
    if status in _UNAUTHORIZED:
        advice = f"name a file with its API key in models.{name}.upstream.key_file"
        return _error(
            f"{where}: it refuses the {'key' if key else 'request without a key'}", advice
        )
    there = _names(data) if status == 200 else None
    if there is None:
        detail = f"{where}: GET /models answers {status} and no list of models"
        return Finding("upstreams", "warning", detail, _NO_LIST)
    if wanted not in there:
        detail = f"{where}: it lists no model {wanted}"
        advice = f"name one of its models in models.{name}.upstream.model"
        return Finding("upstreams", "warning", detail, advice)
    return Finding("upstreams", "ok", f"{where} answers and has {wanted}")


def _names(data: bytearray) -> list[object] | None:
    """Return the names of the models in an answer; None if it is no list of models."""
    try:
        return [each["id"] for each in json.loads(data)["data"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _error(detail: str, advice: str) -> Finding:
    return Finding("upstreams", "error", detail, advice)
