"""Asks a hub what a repository holds: the only module that names huggingface_hub.

Its client tells what is there; the bytes come through transfer.py, which resumes and verifies.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_store.errors import (
    BadName,
    DownloadError,
    Gated,
    HubUnreachable,
    NoSuchRepository,
    NotFoundOnHub,
    StoreError,
    TokenRefused,
)
from model_store.hub.certificates import refusal, tell_client, untrusted
from model_store.hub.connections import Connections
from model_store.hub.options import HubOptions
from model_store.hub.partials import Wanted
from model_store.hub.retries import Patience, may_pass
from model_store.memory import bounded_memory
from model_store.names import check_files, check_repo

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SECONDS = 10  #: for one answer
TOKEN_HINT = (
    "set HF_TOKEN where the server runs, or hub.token_file in the settings, or give a token to "
    "'bitinglip models pull --token-stdin' (make it on the hub: Settings, Access Tokens, read "
    "access is enough)"
)


@dataclass(frozen=True)
class Listing:
    """Holds what a hub says of one commit of a repository; nothing of it is trusted."""

    repo: str  #: as the hub calls it, which may have renamed it
    sha: str
    files: dict[str, Wanted]
    gated: bool
    token: str | None = field(repr=False)  #: None also where the hub refused it
    notes: tuple[str, ...] = ()


class _NoHub(DownloadError):
    """An address gives no answer, or none that a hub gives; another may do."""


class _Unreachable(_NoHub, HubUnreachable):
    """An address gives no answer now."""


def list_files(
    repo: str, revision: str | None, hub: HubOptions, connections: Connections
) -> Listing:
    """Return a commit and its files, from the hub or else from the first mirror that answers.

    Raises DownloadError, its kinds NotFoundOnHub, Gated and TokenRefused, or PullCancelled.
    """
    if hub.offline:
        raise DownloadError("The settings say hub.offline, so nothing is asked of the hub.")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    tell_client()
    first = address_of(hub)
    addresses = [first, *(mirror.rstrip("/") for mirror in hub.mirrors)]
    notes: tuple[str, ...] = ()
    failure: _NoHub | None = None
    for number, address in enumerate(addresses):
        # The token is for the first address only.
        asked = replace(hub, endpoint=address, token=None if number else hub.token)
        rest = [address, *(other for other in addresses if other != address)]
        try:
            found = _list_or_without_token(repo, revision, asked, rest, connections)
        except _NoHub as error:
            failure = failure or error
            notes = (*notes, f"{_host(address)} does not answer as a hub does; asked another.")
            continue
        return replace(found, notes=(*notes, *found.notes))
    raise failure or DownloadError("There is no hub to ask.")


def address_of(hub: HubOptions) -> str:
    """Return the address of the hub itself, or of what the options put in its place."""
    return (hub.endpoint or constants.ENDPOINT).rstrip("/")


def _list_or_without_token(
    repo: str, revision: str | None, hub: HubOptions, addresses: list[str], connections: Connections
) -> Listing:
    """List a repository; once more without the token if it is refused: an expired one is refused
    for public repositories, too."""
    try:
        return _list(repo, revision, hub, addresses, connections)
    except TokenRefused as error:
        try:
            found = _list(repo, revision, replace(hub, token=None), addresses, connections)
        except DownloadError:
            raise error from None
        told = "The hub refuses the token, which may have expired; it is asked without one."
        return replace(found, notes=(told, *found.notes))


def _list(
    repo: str, revision: str | None, hub: HubOptions, addresses: list[str], connections: Connections
) -> Listing:
    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
    with _hub_errors(repo, revision, hub, lambda: _other_kind(api, repo)), bounded_memory():
        info = _patiently(
            lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=_SECONDS),
            connections,
        )
    if info.gated and hub.token is None:
        raise Gated(
            f"{repo} is gated: accept its conditions at {_page(hub, repo)} with an account, "
            f"then give a token of that account: {TOKEN_HINT}."
        )
    sha = str(info.sha)
    if not _COMMIT.fullmatch(sha):
        raise _NoHub(f"{_host(hub.endpoint)} tells no commit of {repo}.")
    siblings = list(info.siblings or ())
    if not all(isinstance(sibling.rfilename, str) for sibling in siblings):
        raise _NoHub(f"{_host(hub.endpoint)} lists files of {repo} without a name.")
    check_files([sibling.rfilename for sibling in siblings])
    name, notes = _name(repo, info.id)
    files = {each.rfilename: _wanted(each, name, sha, addresses) for each in siblings}
    return Listing(name, sha, files, bool(info.gated), hub.token, notes)


def _name(asked: str, told: Any) -> tuple[str, tuple[str, ...]]:
    """Return the repository's name and whether it is another than was asked for."""
    if not isinstance(told, str) or told == asked:
        return asked, ()
    try:
        check_repo(told)
    except BadName:
        raise _NoHub(f"The hub gives {asked} a name that is none: {told[:80]!a}.") from None
    return told, (f"{asked} is {told} on the hub now.",)


def _patiently(ask: Callable[[], Any], connections: Connections) -> Any:
    """Call the client, and again when the hub was only busy."""
    patience = Patience(connections.stopped)
    while True:
        try:
            return connections.call(ask)
        except HfHubHTTPError as error:
            if not may_pass(error.response.status_code) or not patience.failed():
                raise
            patience.rest(error.response)
        connections.check()


def _wanted(file: Any, repo: str, sha: str, addresses: list[str]) -> Wanted:
    size = file.lfs.size if file.lfs else file.size
    sha256 = file.lfs.sha256 if file.lfs else None
    git_sha1 = None if file.lfs else file.blob_id
    # The hash names a file of ours: it must be one, and nothing that leads elsewhere.
    if not isinstance(size, int) or size < 0 or not _HASH.fullmatch(str(sha256 or git_sha1)):
        raise _NoHub(
            f"{_host(addresses[0])} tells no size or hash of {file.rfilename}; a hub's listing "
            "must have size, blobId and lfs.sha256 of each file."
        )
    urls = (
        hf_hub_url(repo, file.rfilename, revision=sha, endpoint=address) for address in addresses
    )
    return Wanted(file.rfilename, tuple(urls), size, sha256, git_sha1)


def _other_kind(api: HfApi, repo: str) -> str:
    """Return what else the hub has under this name, for the message."""
    for kind in ("dataset", "space"):
        # Whatever goes wrong: it only explains an error.
        with suppress(Exception):
            api.repo_info(repo, repo_type=kind, timeout=_SECONDS)
            return f" It is a {kind}, not a model."
    return ""


@contextmanager
def _hub_errors(
    repo: str, revision: str | None, hub: HubOptions, other_kind: Callable[[], str]
) -> Iterator[None]:
    """Raise the client's errors as the store's."""
    try:
        yield
    except StoreError:
        raise
    except MemoryError:
        raise _NoHub(f"What {_host(hub.endpoint)} tells of {repo} has no end.") from None
    except OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is asked of the hub.") from error
    except HFValidationError as error:
        raise BadName(f"'{repo}' is not the name of a repository.") from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, revision, hub, other_kind) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _NoHub(
            f"What {_host(hub.endpoint)} answers is not what a hub answers: its listing is not "
            "JSON, or lacks fields."
        ) from error
    except Exception as error:  # the client's transport is its own affair, and its errors with it
        if (refused := refusal(error)) is not None:
            raise _NoHub(untrusted(refused, _host(hub.endpoint)).message) from error
        raise _Unreachable(
            f"The hub cannot be reached at {_host(hub.endpoint)} ({type(error).__name__}). Another "
            "address, such as a mirror's: hub.endpoint in the settings, or HF_ENDPOINT; by a "
            "proxy: HTTPS_PROXY."
        ) from error


def _refused(
    error: HfHubHTTPError,
    repo: str,
    revision: str | None,
    hub: HubOptions,
    other_kind: Callable[[], str],
) -> DownloadError:
    # Gated is a kind of 'not found', so it comes first.
    if isinstance(error, GatedRepoError):
        return Gated(f"{repo} is gated: ask for access at {_page(hub, repo)}, then {TOKEN_HINT}.")
    if isinstance(error, DisabledRepoError):
        return NotFoundOnHub(f"The hub has disabled {repo}; choose another repository.")
    if isinstance(error, RepositoryNotFoundError):
        return _not_found(repo, hub, other_kind())
    if isinstance(error, RevisionNotFoundError):
        return NotFoundOnHub(f"{repo} has no revision '{revision}'.")
    return _status_error(error, repo, hub)


def _not_found(repo: str, hub: HubOptions, more: str = "") -> NoSuchRepository:
    hint = "your token may not see it" if hub.token else TOKEN_HINT
    if "/" not in repo:
        more = f" Most names are of the form owner/model.{more}"
    return NoSuchRepository(
        f"The hub has no public repository {repo}; if it is private, {hint}.{more}"
    )


def _status_error(error: HfHubHTTPError, repo: str, hub: HubOptions) -> DownloadError:
    status = error.response.status_code
    said = f"The hub answers with HTTP status {status}."
    if status == 401 and hub.token:
        return TokenRefused(
            f"{said} The token is refused: it may have expired. Public models need none."
        )
    if status in (401, 404, 410):
        return _not_found(repo, hub)
    if status == 403:
        return Gated(f"{said} The token may not read {repo}; see {_page(hub, repo)}.")
    return _Unreachable(said) if may_pass(status) else _NoHub(said)


def _page(hub: HubOptions, repo: str) -> str:
    """Return the address of a repository's page, without what the hub's may hold of secrets."""
    parts = urlsplit(hub.endpoint or constants.ENDPOINT)
    return f"{parts.scheme}://{_host(hub.endpoint)}{parts.path}/{repo}"


def _host(endpoint: str | None) -> str:
    """Return the host that is asked, without what an address may hold of secrets."""
    try:
        return urlsplit(endpoint or constants.ENDPOINT).netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is none"
