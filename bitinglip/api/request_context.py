"""What is noted about one request and its answer while they pass through."""

import random
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

CLIENT_GONE = 499  #: the client left before the answer; never sent, only counted
_KEY = "bitinglip.exchange"


def new_request_id() -> str:
    """Time-ordered, so that logs sort, and unique; a name, not a secret."""
    return f"req-{time.time_ns() // 1_000_000:012x}{random.getrandbits(64):016x}"


@dataclass(slots=True)
class RequestContext:
    request_id: str
    began: float = field(default_factory=time.perf_counter)
    engine_seconds: float = 0.0  #: spent queueing and computing, so not the gateway's own time
    status: int = CLIENT_GONE
    leave: Callable[[], None] | None = None  #: gives back the caller's place, once known

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        scope[_KEY] = self

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    exchange: RequestContext = scope[_KEY]
    return exchange


def request_id_of(request: HTTPConnection) -> str:
    return context_of(request.scope).request_id
