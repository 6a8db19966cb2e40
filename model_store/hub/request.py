"""Says what a pull is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_store.errors import BadFiles, BadName
from model_store.hub.options import HubOptions
from model_store.manifest import HUB, Manifest
from model_store.names import check_name, check_repo, check_revision


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """Names a repository, the files of it that are wanted, and the model that they become."""

    repo: str
    hub: HubOptions
    revision: str | None = None  #: None: the main branch
    name: str | None = None  #: of the model in the store; None: the repository's
    include: Sequence[str] = ()  #: globs; none: what serving needs
    allow_pickles: bool = False  #: where there are no better weights, fetch those and convert them

    @property
    def model(self) -> str:
        """Return the model's name in the store."""
        return self.name or self.repo

    def check(self) -> None:
        """Raise BadName if a name or the revision is none."""
        check_repo(self.repo)
        if self.repo.startswith(("datasets/", "spaces/")):
            raise BadName(f"'{self.repo}' names a dataset or a space; only models can be pulled.")
        if self.revision is not None:
            check_revision(self.revision)
        if self.name is not None:
            check_name(self.name)

    def at(self, revision: str) -> "PullRequest":
        """Return the same request for another revision."""
        return replace(self, revision=revision)


def request_again(
    manifest: Manifest,
    hub: HubOptions,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    allow_pickles: bool = False,
) -> PullRequest:
    """Return the request for a model that is in the store. Raises BadFiles if it is not the hub's.

    ``revision`` is what to follow, the main branch if it is left out.
    """
    if not manifest.source.startswith(HUB):
        raise BadFiles(f"{manifest.name} did not come from the hub, so nothing can update it.")
    return PullRequest(
        repo=manifest.source.removeprefix(HUB),
        hub=hub,
        revision=revision,
        name=manifest.name,
        include=include,
        allow_pickles=allow_pickles,
    )
