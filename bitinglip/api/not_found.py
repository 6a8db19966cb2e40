"""Says what there is instead of a path that no route has."""

from collections.abc import Iterable, Mapping

from bitinglip.errors import NotFound

_OPENAI = (
    "/chat/completions", "/completions", "/embeddings", "/models", "/images/", "/audio/",
    "/responses", "/messages", "/rerank",
)  # fmt: skip
_NOTHING = "There is nothing at this path"
_ROUTES = "/docs lists the routes that there are."
_BLURRED = str.maketrans("", "", "/-_s")  #: what is easily left out or added
_LONGEST = 200  #: characters of a path that are looked at, or shown
_CHAT = "/v1/chat/completions"
#: Beginnings of paths that clients of other servers ask for, what does the same here, and why.
_ELSEWHERE = {
    "/api/chat": (_CHAT, "This is Ollama's API; OpenAI's is served here."),
    "/api/generate": ("/v1/completions", "This is Ollama's API; OpenAI's is served here."),
    "/api/embed": ("/v1/embeddings", "This is Ollama's API; OpenAI's is served here."),
    "/api/tags": ("/v1/models", "This is Ollama's API; OpenAI's is served here."),
    "/openai/deployments/": (_CHAT, "This is Azure's API; OpenAI's is served here."),
    "/v1/engines": ("/v1/models", "OpenAI has replaced engines by models."),
    "/v1/assistants": (_CHAT, "Assistants are not served here."),
    "/v1/threads": (_CHAT, "Assistants are not served here."),
    "/v1/complete": ("/v1/messages", "Text completions of Anthropic's are not served here."),
    "/v1/audio/speech/stream": ("/v1/audio/speech", "Its response_format pcm is streamed."),
    "/v2/rerank": ("/v1/rerank", "Reranking is served under /v1."),
    "/rerank": ("/v1/rerank", "Reranking is served under /v1."),
}
#: Beginnings of OpenAI's paths for which there is nothing here, and what they are for.
_ABSENT = {
    "/v1/moderations": "Moderation",
    "/v1/fine_tuning": "Fine-tuning",
    "/v1/vector_stores": "Vector stores",
    "/v1/conversations": "Conversations (previous_response_id continues a response)",
    "/v1/uploads": "Uploads in parts (POST /v1/files takes a whole file)",
    "/v1/realtime": "The realtime API",
    "/v1/videos": "Video",
    "/v1/containers": "Containers",
    "/v1/evals": "Evaluations",
    "/v1/organization": "Organizations (/api/v1/keys and /api/v1/usage are those of this server)",
}


def blurred(paths: Iterable[str]) -> Mapping[str, str]:
    """Return the paths by what is left of them without what is easily mistaken."""
    return {_blur(path): path for path in paths if "{" not in path}


def _blur(path: str) -> str:
    return path.lower().translate(_BLURRED)


def not_found(path: str, routes: Mapping[str, str]) -> NotFound:
    """Return the error for a path, with the usual mistake in it if it holds one.

    ``routes``: the ``blurred`` paths that there are, of which one may be meant.
    """
    plain = path.rstrip("/")
    if plain.startswith("/v1/v1/"):
        return _instead(plain.removeprefix("/v1"), "The base URL holds /v1 already.")
    for beginning, (other, reason) in _ELSEWHERE.items():
        if plain.startswith(beginning):
            return _instead(other, reason)
    for beginning, what in _ABSENT.items():
        if plain.startswith(beginning):
            return NotFound(f"{_NOTHING}. {what}: not served here. {_ROUTES}")
    if plain.startswith(_OPENAI):
        return _instead(f"/v1{plain}", "The base URL of OpenAI's API ends in /v1.")
    if plain and plain != path and path.startswith(("/v1/", "/api/v1/")):
        return _instead(plain, "Paths end without a slash.")
    near = routes.get(_blur(plain[:_LONGEST]))
    return _instead(near, _ROUTES) if near else NotFound(f"{_NOTHING}. {_ROUTES}")


def _instead(other: str, reason: str) -> NotFound:
    shown = other[:_LONGEST]
    return NotFound(f"{_NOTHING}; try {shown}. {reason}", details={"try": shown})
