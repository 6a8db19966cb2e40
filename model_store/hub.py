"""Pulls from the Hugging Face hub: the only module that names huggingface_hub.

Its client tells what is there; the bytes come through transfer.py, which resumes and verifies.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

from model_store.disk import check_room, link_or_copy, store_errors
from model_store.errors import BadFiles, BadName, DownloadError
from model_store.inspection import components, inspect_texts
from model_store.kinds import read_json
from model_store.manifest import FILES, Manifest
from model_store.names import check_files, check_repo, check_revision
from model_store.pickles import convert, pickled
from model_store.progress import Counter, Progress
from model_store.selection import INDEX, PICKLES, WEIGHTS, select
from model_store.store import ModelStore
from model_store.transfer import Fetcher, Wanted

_HEAVY = (WEIGHTS, *PICKLES)
_PAUSES = (0.5, 1.0, 2.0)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_TIMEOUT = httpx.Timeout(15, connect=10)
_TOKEN_HINT = "set HF_TOKEN, or hub.token_file in the settings"


@dataclass(frozen=True)
class HubOptions:
    """The address of a hub and a token, which is sent to that hub's host and nowhere else."""

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
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
    allow_pickles: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = never,
) -> Manifest:
    """Download a repository into the store, or go on where an earlier pull stopped.

    Every file is verified against the hub's hash. ``allow_pickles``: where there are no better
    weights, fetch those and convert them. Raises BadName, NameTaken, BadFiles,
    DownloadError, NoSpace or PullCancelled.
    """
    check_repo(repo)
    if revision is not None:
        check_revision(revision)
    store.check_free(name or repo)
    if hub.offline:
        raise DownloadError("The settings say hub.offline, so nothing is asked of the hub.")
    sha, files = _listing(repo, revision, hub)
    with store.pulling(repo) as blobs, _client() as client:
        fetcher = Fetcher(client, blobs, cancelled, token=hub.token)
        pickles = pickled(files) if allow_pickles else []
        wanted = _choose(files, include, fetcher, pickles)
        missing = sum({file.key: file.size - _there(blobs, file) for file in wanted}.values())
        check_room(blobs, missing)
        counter = Counter(progress, sum(file.size for file in wanted), len(wanted))
        with store_errors("The model cannot be stored"), store.draft() as folder:
            known = _fill(folder / FILES, wanted, fetcher, counter)
            source = f"hub:{repo}"
            try:
                if any(file.path in pickles for file in wanted):
                    convert(folder / FILES, progress, cancelled, confine=store.confine)
                manifest = store.finish(
                    folder, name or repo, source=source, revision=sha, known=known
                )
            except BadFiles:
                shutil.rmtree(blobs)  # whole, and of no use
                raise
        shutil.rmtree(blobs)  # only now: until the model is in its place, a crash loses nothing
    return manifest


def _client() -> httpx.Client:
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, max_redirects=5)


def _listing(repo: str, revision: str | None, hub: HubOptions) -> tuple[str, dict[str, Wanted]]:
    """Return the commit and its files from the hub's listing, which is not trusted."""
    with _hub_errors(repo, revision, hub):
        constants.HF_HUB_DISABLE_TELEMETRY = True
        endpoint = hub.endpoint.rstrip("/") if hub.endpoint else None
        api = HfApi(endpoint=endpoint, token=hub.token or False)
        info = _patiently(
            lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=10)
        )
    if info.gated and hub.token is None:
        raise DownloadError(f"{repo} is gated and needs a token with access: {_TOKEN_HINT}.")
    sha = str(info.sha)
    if not _HASH.fullmatch(sha):
        raise DownloadError(f"The hub tells no commit of {repo}.")
    siblings = list(info.siblings or ())
    check_files([sibling.rfilename for sibling in siblings])
    return sha, {file.rfilename: _wanted(file, repo, sha, api.endpoint) for file in siblings}


def _patiently(ask: Callable[[], Any]) -> Any:
    """Call the client, and again when the hub was only busy."""
    for pause in _PAUSES:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in (429, 500, 502, 503, 504):
                raise
            time.sleep(pause)
    return ask()


def _wanted(file: Any, repo: str, sha: str, endpoint: str) -> Wanted:
    size = file.lfs.size if file.lfs else file.size
    sha256 = file.lfs.sha256 if file.lfs else None
    git_sha1 = None if file.lfs else file.blob_id
    # The hash names a file of ours: it must be one, and nothing that leads elsewhere.
    if not isinstance(size, int) or size < 0 or not _HASH.fullmatch(str(sha256 or git_sha1)):
        raise DownloadError(f"The hub tells no size or hash of {file.rfilename}.")
    url = hf_hub_url(repo, file.rfilename, revision=sha, endpoint=endpoint)
    return Wanted(path=file.rfilename, url=url, size=size, sha256=sha256, git_sha1=git_sha1)


def _choose(
    files: dict[str, Wanted], include: Sequence[str], fetcher: Fetcher, pickles: Sequence[str]
) -> list[Wanted]:
    """Choose the files to fetch, texts before weights; a pipeline's index names its folders."""
    parts = None
    if INDEX in files and not include:
        index, _ = fetcher.fetch(files[INDEX], Counter(None, 0, 0))
        parts = components(read_json(index))
    chosen = [files[path] for path in select(files, include, parts, pickles)]
    return sorted(chosen, key=lambda file: (file.path.endswith(_HEAVY), file.path))


def _fill(folder: Path, wanted: list[Wanted], fetcher: Fetcher, counter: Counter) -> dict[str, str]:
    """The files in place, and their SHA-256; what the texts forbid is refused before any weights
    are fetched."""
    digests: dict[str, str] = {}
    looked = False
    for file in wanted:
        if file.path.endswith(_HEAVY) and not looked:
            inspect_texts(folder)
            looked = True
        blob, digests[file.path] = fetcher.fetch(file, counter)
        link_or_copy(blob, folder / file.path)
    return digests


def _there(blobs: Path, file: Wanted) -> int:
    for path in (blobs / file.key, blobs / f"{file.key}.part"):
        if path.exists():
            return path.stat().st_size
    return 0


@contextmanager
def _hub_errors(repo: str, revision: str | None, hub: HubOptions) -> Iterator[None]:
    """Raise the client's four kinds of error as the store's. Gated is a kind of 'not found', so
    it comes first."""
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: ask for access on its page on the hub, then {_TOKEN_HINT}."
        ) from error
    except RepositoryNotFoundError as error:
        hint = "your token may not see it" if hub.token else _TOKEN_HINT
        raise DownloadError(
            f"The hub has no public repository {repo}; if it is private, {hint}."
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision '{revision}'.") from error
    except OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is asked of the hub.") from error
    except HFValidationError as error:
        raise BadName(f"'{repo}' is not the name of a repository.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        refused = " The token is refused; public models need none."
        hint = refused if status == 401 and hub.token else ""
        raise DownloadError(f"The hub answers with HTTP status {status}.{hint}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DownloadError("The hub's answer is not what a hub answers.") from error
    except Exception as error:  # the client's transport is its own affair, and its errors with it
        raise DownloadError(
            f"The hub cannot be reached at {_address(hub)} ({type(error).__name__}). Another "
            "address, such as a mirror's: hub.endpoint in the settings, or HF_ENDPOINT; by a "
            "proxy: HTTPS_PROXY."
        ) from error


def _address(hub: HubOptions) -> str:
    """Return the host that is asked, without what an address may hold of secrets."""
    return urlsplit(hub.endpoint or constants.ENDPOINT).netloc.rpartition("@")[2]
