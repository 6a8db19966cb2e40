"""Sends requests to a server from several threads, and measures what it answers."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.errors import Failure

if TYPE_CHECKING:
    from cli.client import Client

_INFERENCE = "/api/v1/inference/"
_WORDS = "the server reads these words and answers with as many as it was asked for "


@dataclass
class Sample:
    """Holds the moments of one request, in seconds of one clock."""

    began: float
    ended: float = 0.0
    tokens: list[float] = field(default_factory=list)  #: when each came, with others or alone
    completion_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Load:
    """Says what is asked of a model, again and again."""

    model: str
    kind: str  #: text, image, speech or embedding
    prompt_words: int
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """Return a request that begins as no other does, so that nothing of it is cached."""
        words = (_WORDS * (1 + self.prompt_words // 15)).split()[: self.prompt_words]
        text = f"{secrets.token_hex(4)} {' '.join(words)}"
        match self.kind:
            case "text":
                more = {"max_tokens": self.max_tokens, "ignore_eos": True, "stream": True}
                return {"model": self.model, "prompt": text, "temperature": 0.0, **more}
            case "image":
                return {"model": self.model, "prompt": text[:200]}
            case "speech":
                return {"model": self.model, "text": text[:200]}
            case _:
                return {"model": self.model, "input": text}

    @property
    def path(self) -> str:
        routes = {"image": "image-generation", "speech": "text-to-speech"}
        routes |= {"text": "text-generation", "embedding": "embeddings"}
        return _INFERENCE + routes[self.kind]


def run(client: "Client", load: Load, *, concurrency: int, requests: int) -> list[Sample]:
    """Keep ``concurrency`` requests running until there were ``requests``; return them all."""
    one: Callable[[int], Sample] = lambda _number: ask(client, load)  # noqa: E731  a typed lambda
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(requests)))


def ask(client: "Client", load: Load) -> Sample:
    """Send one request; what it is refused with is its sample's error."""
    sample = Sample(time.perf_counter())
    try:
        if load.kind == "text":
            with client.stream(load.path, load.body()) as events:
                _read(events, sample)
        else:
            client.post(load.path, load.body(), patience=None)
    except Failure as error:
        sample.error = str(error)
    sample.ended = time.perf_counter()
    return sample


def _read(events: Iterator[tuple[str, dict[str, Any]]], sample: Sample) -> None:
    for name, data in events:
        if name == "token":
            sample.tokens.append(time.perf_counter())
        elif name == "completed":
            sample.completion_tokens = data["usage"]["completion_tokens"]
        elif name in ("failed", "cancelled"):
            error = data.get("error") or {}
            sample.error = str(error.get("message", name))
