"""Shows downloads to clients, and declares the request for one."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.downloads.download import Download, Priority, Wanted
from bitinglip.wire.body import Body
from bitinglip.wire.errors import timestamp
from model_store.manifest import HUB
from model_store.names import check_name, check_repo, check_revision

RepoOf = Callable[[str], str | None]
Glob = Annotated[str, Field(min_length=1, max_length=256)]


class DownloadRequest(Body):
    """The body of ``POST /models/download``; it has no place for a token, which rows would keep."""

    model_name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="a repository, owner/name or owner/name@revision, or a short name",
        ),
    ]
    source: Literal["huggingface"] = "huggingface"
    priority: Priority = "normal"
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="a branch, a tag, a commit or refs/pr/N"
    )
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="the model's name here; the repository's by default"
    )
    include: Annotated[list[Glob], Field(max_length=64)] = Field(
        [], description="globs of the files to take; by default what serving needs"
    )
    allow_pickles: bool = Field(
        False, description="take pickled weights where there are no others; scope admin"
    )

    def wanted(self, repo_of: RepoOf) -> Wanted:
        """Return what is asked for; a model that is asked for by a short name gets that name.

        ``repo_of`` returns the repository that a short name stands for. Raises BadName.
        """
        asked, _, revision = self.model_name.partition("@")
        revision = self.revision or revision
        repo = check_repo(repo_of(asked) or asked)
        if revision:
            check_revision(revision)
        return Wanted(
            repo=repo,
            name=check_name(self.name or asked),
            revision=revision or None,
            include=tuple(self.include),
            allow_pickles=self.allow_pickles,
        )


def download_info(download: Download) -> dict[str, Any]:
    """Describe a download; ``files`` are in the order of their paths."""
    wanted, error = download.wanted, download.error
    return {
        "id": download.id,
        "model": wanted.name,
        "source": "huggingface",
        "task": wanted.task,
        "repo": wanted.repo,
        "revision": download.commit or wanted.revision,
        "priority": download.priority,
        "state": download.state,
        "waits_for": download.waits_for,
        "retry_at": _time(download.retry_at),
        "bytes_done": download.bytes_done,
        "bytes_total": download.bytes_total,
        "files": [
            {"path": path, "bytes_done": file.bytes_done, "bytes_total": file.bytes_total}
            for path, file in sorted(download.files.items())
        ],
        "changes": download.changes,
        "notes": list(download.notes),
        "error": error and {"code": error.code, "message": error.message},
        "created_at": timestamp(download.created_at),
        "started_at": _time(download.started_at),
        "finished_at": _time(download.finished_at),
    }


def downloading_model(download: Download) -> dict[str, Any]:
    """Describe a model that is on its way, with the fields of those that are here."""
    return {
        "model_id": download.wanted.name,
        "name": download.wanted.name,
        "type": None,
        "kind": None,
        "task": None,
        "description": "",
        "size": None,
        "status": "downloading",
        "cause": None,
        "progress": download.fraction,
        "replicas": 0,
        "load_seconds": {},
        "capabilities": [],
        "supported_parameters": {},
        "engine": None,
        "architecture": None,
        "model_type": None,
        "license": None,
        "languages": [],
        "max_context": None,
        "dtype": None,
        "device": None,
        "parameters": 0,
        "bytes": download.bytes_total,
        "source": f"{HUB}{download.wanted.repo}",
        "revision": download.wanted.revision,
        "download": download.id,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
