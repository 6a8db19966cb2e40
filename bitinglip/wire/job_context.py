"""The context holds all that a request needs besides its body to become a job."""

import hashlib
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec

from bitinglip.access.credentials import Credential
from bitinglip.access.keys import Caller
from bitinglip.guard.guard import Guard
from bitinglip.guard.modes import Modes
from bitinglip.scheduling.job import FileOutput, Job
from bitinglip.scheduling.queue.priority import Priority, RequestPriority, priority_of, tier_of
from bitinglip.settings import Model, Settings, Tier
from bitinglip.settings.limits import Limits
from workers import protocol

MOST_SESSION_NAME = 256  #: characters
_MOST_KNOWN = 4096
#: a model, the priority of the request, and the pixels of the model's images
_AskedOfCaller = tuple[str, RequestPriority, int]
_Asked = tuple[int, str, RequestPriority, int]
_SECRET = secrets.token_bytes(16)  #: of this process: names of keys mean nothing to another


class JobContext(msgspec.Struct, frozen=True, kw_only=True):
    """Holds the settings of the server and the model, and the caller's key, tier and priority."""

    model: str
    model_settings: Model
    image_side: int = 0  #: pixels that the model was made for; 0 if its files do not tell
    limits: Limits
    tier: Tier
    key_id: str
    credential: Credential | None = None
    timeout: float  #: seconds; a request may ask for less
    priority: Priority
    guard: Modes | None = None
    session: str | None = None  #: the client's name for requests that stay on one replica
    folder: Path  #: where workers write images and audio to
    uploads: Path  #: where the files are that clients send
    prefix_scope: str | None = None  #: of prompts, see ``protocol.TextJob``
    trace: str | None = None  #: traceparent of the request, if it is traced

    def job(
        self,
        work: protocol.Job,
        *,
        timeout: float | None = None,
        output: FileOutput = "b64",
        file_bytes: int = 0,
        seeded: bool = False,
        session: object = None,
    ) -> Job:
        """Put a message into its envelope.

        ``session``: what a field of the body says of it, for requests without the header.
        """
        return Job(
            work=work,
            model=self.model,
            key_id=self.key_id,
            credential=self.credential,
            timeout=min(timeout or self.timeout, self.timeout),
            priority=self.priority,
            output=output,
            file_bytes=file_bytes,
            seeded=seeded,
            guard=self.guard,
            session=self.session or named_session(session),
            trace=self.trace,
        )


class KnownContexts:
    """Remembers what callers have for models: it changes only with the caller.

    A key's caller is one object until the key is changed, and another one then. That of a token is
    another one at each request, so nothing is remembered of it.
    """

    def __init__(self) -> None:
        self._known: dict[_Asked, tuple[Caller, JobContext]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(
        self, caller: Caller, asked: _AskedOfCaller, make: Callable[[], JobContext]
    ) -> JobContext:
        """Return the context of a caller's requests for what is ``asked``; made if it is new."""
        if caller.token:
            return make()
        key = (id(caller), *asked)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = caller, make()  # which keeps the caller, and so its id
        return found[1]


def caller_context(
    settings: Settings,
    guard: Guard,
    caller: Caller,
    model: str,
    priority: RequestPriority,
    *,
    folder: Path,
    uploads: Path,
    session: str | None = None,
    image_side: int = 0,
) -> JobContext:
    """Gather what the settings and the caller's key give a request for a model."""
    tier = tier_of(settings.limits.tiers, caller.tier)
    model_settings = settings.model(model)
    return JobContext(
        model=model,
        model_settings=model_settings,
        image_side=image_side,
        limits=settings.limits,
        tier=tier,
        key_id=caller.key_id,
        credential=caller.credential,
        timeout=settings.server.request_timeout,
        priority=priority_of(tier, priority),
        guard=guard.modes(caller.tier, tier, caller.guard or "off"),
        session=session,
        folder=folder,
        uploads=uploads,
        prefix_scope=_prefix_scope(model_settings, caller.key_id),
    )


def _prefix_scope(model: Model, key_id: str) -> str | None:
    """Return what requests have in common that may share what is computed of their prompts."""
    match model.text.prefix_cache:
        case "key":
            return _scope_of_key(key_id)
        case "shared":
            return ""
        case "off":
            return None


@lru_cache(maxsize=4096)
def _scope_of_key(key_id: str) -> str:
    """Name a key to workers, which learn no id of a key."""
    return hashlib.blake2b(key_id.encode(), digest_size=8, key=_SECRET).hexdigest()


def named_session(value: object) -> str | None:
    """Return a client's name of a session, if this is one: up to 256 characters."""
    if isinstance(value, str) and 0 < len(value) <= MOST_SESSION_NAME:
        return value
    return None
