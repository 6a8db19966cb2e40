"""Checks the servers that answer for models, where the settings name some."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli.checks.findings import Finding

if TYPE_CHECKING:
    from bitinglip.settings import Settings
    from bitinglip.settings.upstream import Upstream

_SECONDS = 3.0  #: for a server's answer
_KEY = "it holds the key in one line, and nothing else"
_UNAUTHORIZED = (401, 403)


def upstreams(settings: "Settings") -> Iterator[Finding]:
    """Find servers that do not answer, refuse the key or lack the model, and keys not readable."""
    from workers.secret_files import SecretFileRefused, read_secret_text

    for name, model in settings.models.items():
        own = model.upstream
        try:
            key = None if own.key_file is None else read_secret_text(own.key_file)
        except SecretFileRefused as error:
            problem = f"models.{name}.upstream.key_file: {error}"
            yield _error(problem, "correct the setting, or the file's rights")
            continue
        if key is not None and not (key.isascii() and key.isprintable()):
            yield _error(f"models.{name}.upstream.key_file: {own.key_file} is no API key", _KEY)
            continue
        for url in own.url:
            yield _server(name, own, url, key)


def _server(name: str, own: "Upstream", url: str, key: str | None) -> Finding:
    import httpx

    where, wanted = f"{name} at {url}", own.model or name
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/models",
            headers=headers,
            timeout=_SECONDS,
            trust_env=False,  # as the server, which takes no proxy of the environment
        )
    except httpx.HTTPError as error:
        reason = "it does not answer in time" if isinstance(error, httpx.TimeoutException) else ""
        detail = f"{where}: {reason or 'there is no connection to it'}"
        advice = f"start it, or correct models.{name}.upstream.url"
        return Finding("upstreams", "warning", detail, advice)
    if answer.status_code in _UNAUTHORIZED:
        advice = f"name a file with its API key in models.{name}.upstream.key_file"
        return _error(
            f"{where}: it refuses the {'key' if key else 'request without a key'}", advice
        )
    there = _names(answer)
    if there is None:
        detail = f"{where}: GET /models answers {answer.status_code} and no list of models"
        return Finding("upstreams", "warning", detail, "the URL usually ends with /v1")
    if wanted not in there:
        detail = f"{where}: it lists no model {wanted}"
        advice = f"name one of its models in models.{name}.upstream.model"
        return Finding("upstreams", "warning", detail, advice)
    return Finding("upstreams", "ok", f"{where} answers and has {wanted}")


def _names(answer: Any) -> list[object] | None:
    """Return the names of the models in an answer; None if it is no list of models."""
    try:
        return [each["id"] for each in answer.json()["data"]] if answer.is_success else None
    except (ValueError, TypeError, KeyError):
        return None


def _error(detail: str, advice: str) -> Finding:
    return Finding("upstreams", "error", detail, advice)
