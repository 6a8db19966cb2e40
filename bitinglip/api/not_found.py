"""Says what there is instead of a path that no route has."""

from bitinglip.errors import NotFound

_OPENAI = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/rerank",
    "/responses",
    "/messages",
    "/models",
    "/images/",
    "/audio/",
)
_ROUTES = "/docs lists the routes that there are."


def not_found(path: str) -> NotFound:
    """Return the error for a path, with the usual mistake in it if it holds one."""
    plain = path.rstrip("/")
    if plain.startswith("/v1/v1/"):
        return _instead(plain.removeprefix("/v1"), "The base URL holds /v1 already.")
    if plain.startswith(_OPENAI):
        return _instead(f"/v1{plain}", "The base URL of OpenAI's API ends in /v1.")
    if plain and plain != path and path.startswith(("/v1/", "/api/v1/")):
        return _instead(plain, "Paths end without a slash.")
    return NotFound(f"There is nothing at this path. {_ROUTES}")


def _instead(other: str, reason: str) -> NotFound:
    shown = other[:200]
    return NotFound(f"There is nothing at this path; try {shown}. {reason}", details={"try": shown})
