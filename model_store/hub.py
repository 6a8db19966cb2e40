"""Pulls from the Hugging Face hub: the only module that names huggingface_hub.

Its client tells what is there; the bytes come through transfer.py, which resumes and verifies.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_store.errors import BadName, DownloadError, NoSpace
from model_store.manifest import Manifest
from model_store.names import check_files, check_name, check_revision
from model_store.progress import Counter, Progress
from model_store.selection import select
from model_store.store import FILES, ModelStore
from model_store.transfer import FLOOR_BYTES, Fetcher, Wanted

_TIMEOUT = httpx.Timeout(30, connect=10)
_TOKEN_HINT = "set HF_TOKEN, or hub.token_file in the settings"


@dataclass(frozen=True)
class HubOptions:
    """Which hub, and as whom. The token goes to that hub's own host and nowhere else."""

    endpoint: str | None = None
    token: str | None = None
    offline: bool = False


def never() -> bool:
    return False


def pull(
    store: ModelStore,
    repo: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    include: Sequence[str] = (),
    hub: HubOptions,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = never,
) -> Manifest:
    """Download a repository into the store, or go on where an earlier pull stopped.

    Every file is verified against the hub's hash. Raises BadName, NameTaken, BadFiles,
    DownloadError, NoSpace or PullCancelled.
    """
    check_name(repo)
    if revision is not None:
        check_revision(revision)
    store.check_free(name or repo)
    if hub.offline:
        raise DownloadError("The settings say hub.offline, so nothing is asked of the hub.")
    with _translated(repo, revision):
        info = _api(hub).model_info(repo, revision=revision, files_metadata=True)
    if info.gated and hub.token is None:
        raise DownloadError(f"{repo} is gated and needs a token with access: {_TOKEN_HINT}.")
    wanted = _plan(info, repo, hub, include)
    _check_space(store, wanted)
    counter = Counter(progress, sum(file.size for file in wanted), len(wanted))
    blobs = store.partial / "blobs"
    blobs.mkdir(exist_ok=True)
    with _client() as client, store.draft() as folder:
        fetcher = Fetcher(client, blobs, counter, cancelled, token=hub.token)
        fetched = {file.path: fetcher.fetch(file) for file in wanted}
        for path, blob in fetched.items():
            target = folder / FILES / path
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.replace(target)
        return store.finish(folder, name or repo, source=f"hub:{repo}", revision=info.sha)


def _api(hub: HubOptions) -> HfApi:
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return HfApi(endpoint=hub.endpoint, token=hub.token or False)


def _client() -> httpx.Client:
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, max_redirects=5)


def _plan(info: Any, repo: str, hub: HubOptions, include: Sequence[str]) -> list[Wanted]:
    """What to fetch of a listing that is not trusted."""
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    check_files(list(files))
    chosen = select({path: file.size or 0 for path, file in files.items()}, include)
    return [_wanted(files[path], repo, str(info.sha), hub) for path in chosen]


def _wanted(file: Any, repo: str, sha: str, hub: HubOptions) -> Wanted:
    if file.size is None or not (file.lfs or file.blob_id):
        raise DownloadError(f"The hub tells no size or hash of {file.rfilename}.")
    return Wanted(
        path=file.rfilename,
        url=hf_hub_url(repo, file.rfilename, revision=sha, endpoint=hub.endpoint),
        size=file.lfs.size if file.lfs else file.size,
        sha256=file.lfs.sha256 if file.lfs else None,
        git_sha1=None if file.lfs else file.blob_id,
    )


def _check_space(store: ModelStore, wanted: list[Wanted]) -> None:
    missing = sum(file.size for file in wanted)
    blobs = store.partial / "blobs"
    for file in wanted:
        for there in (blobs / file.key, blobs / f"{file.key}.part"):
            missing -= there.stat().st_size if there.exists() else 0
    free = shutil.disk_usage(store.partial).free - FLOOR_BYTES
    if missing > free:
        raise NoSpace(
            f"This pull needs {missing / 1e9:.1f} GB more; {max(free, 0) / 1e9:.1f} GB are free. "
            "Remove a model, or move the home."
        )


@contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    """The client's four families of errors, as ours. Gated first: it is a kind of 'not found'."""
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: ask for access on its page on the hub, then {_TOKEN_HINT}."
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"The hub has no public repository {repo}; if it is private, {_TOKEN_HINT}."
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision '{revision}'.") from error
    except OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is asked of the hub.") from error
    except HFValidationError as error:
        raise BadName(f"'{repo}' is not the name of a repository.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        hint = " The token is refused." if status == 401 else ""
        raise DownloadError(f"The hub answers with HTTP status {status}.{hint}") from error
    except Exception as error:
        raise DownloadError(f"The hub cannot be reached ({type(error).__name__}).") from error
