"""Declares requests for the care of the store, and their responses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from bitinglip.downloads.download import Priority
from bitinglip.wire.body import Body
from bitinglip.wire.errors import timestamp
from model_store.cleanup import Removal
from model_store.records import LONGEST_NOTES, Care, Usage
from model_store.verification import Difference


class ChangeModelRequest(Body):
    """The body of ``PATCH /models/{id}``; what is left out, or null, stays."""

    pinned: bool | None = Field(None, description="no clean-up removes a pinned model")
    notes: Annotated[str, Field(max_length=LONGEST_NOTES)] | None = None


class VerifyRequest(Body):
    """The body of ``POST /models/{id}/verify``."""

    repair: bool = Field(False, description="fetch what differs: the answer is a download")
    priority: Priority = "normal"


class UpdateRequest(Body):
    """The body of ``POST /models/{id}/update``."""

    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="a branch, a tag, a commit or refs/pr/N; by default the newest of main"
    )
    priority: Priority = "normal"


class CleanUpRequest(Body):
    """The body of ``POST /models/gc``."""

    dry_run: bool = Field(True, description="only say what would be removed")
    max_bytes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="of the store; by default store.max_bytes"
    )


def care_info(usage: Usage, care: Care) -> dict[str, Any]:
    """Describe what is told of a model after it came; fields of the model's own object."""
    used = usage.last_used_at
    return {
        "pinned": care.pinned,
        "notes": care.notes,
        "last_used_at": None if used is None else timestamp(used),
        "loads": usage.loads,
    }


def verdict_info(
    model: str, found: Sequence[Difference], may_see: Callable[[str], bool]
) -> dict[str, Any]:
    """Describe what differs in a model's files; ``may_see`` says which models are named."""
    return {
        "model": model,
        "whole": not found,
        "differences": [
            {
                "path": each.path,
                "what": each.what,
                "shared_with": [*filter(may_see, each.shared_with)],
            }
            for each in found
        ],
    }


def removal_info(removal: Removal) -> Mapping[str, Any]:
    return {
        "kind": removal.kind,
        "name": removal.name,
        "bytes": removal.bytes,
        "why": removal.why,
    }
