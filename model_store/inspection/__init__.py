"""Inspects a folder in Hugging Face layout: what model it is, or why it is refused.

Everything that can be told from files alone is told here, before any library opens them: code,
pickles, indices that point elsewhere, headers that lie, configs that claim more than the weights.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from model_store.errors import BadFiles
from model_store.inspection.adapter import inspect_adapter, is_adapter
from model_store.inspection.arrays import check_arrays
from model_store.inspection.card import describe
from model_store.inspection.facts import Inspection
from model_store.inspection.files import model_files, needs_code, open_files
from model_store.inspection.pipeline import check_index, components, inspect_pipeline
from model_store.inspection.transformer import inspect_transformer
from model_store.inspection.weights import CODE, check_indices
from model_store.kinds import (
    WITHOUT_WEIGHTS,
    asked_of_upstream,
    is_pipeline,
    kind_of,
    model_type_of,
    read_any_json,
    read_json,
)
from model_store.manifest import ADAPTER, EMBEDDING, RERANK, VISION, Manifest
from model_store.selection import required

__all__ = [
    "Inspection",
    "based",
    "components",
    "inspect",
    "inspect_texts",
    "model_files",
    "refreshed",
]


#: of models without weights, by what they do
_CAPABILITIES = {
    "text": ("completion", "chat"),
    "vision": ("completion", "chat", VISION),
    "embedding": (EMBEDDING,),
    "rerank": (RERANK,),
    "transcription": ("speech-to-text",),
    "speech": ("text-to-speech",),
    "image": ("text-to-image",),
}


def inspect(folder: Path) -> Inspection:
    """Inspect a folder. Raises BadFiles if it is not a model that may be taken in."""
    kind = inspect_texts(folder)
    if kind == ADAPTER:
        found = inspect_adapter(folder)
    elif is_pipeline(folder):
        found = inspect_pipeline(folder)
    else:
        config = read_json(folder / "config.json")
        own = model_type_of(config)
        if own in WITHOUT_WEIGHTS:
            asked = asked_of_upstream(config)
            return Inspection(
                kind,
                WITHOUT_WEIGHTS[own],
                model_type=own,
                has_chat_template=kind == "text",
                capabilities=_CAPABILITIES[asked],
            )
        found = inspect_transformer(folder, kind, config)
    found.license, languages = describe(folder)
    found.languages = found.languages or languages
    return found


def based(found: Inspection, base: str | None) -> Inspection:
    """Return the facts of an adapter with the base that is named, if one is.

    Raises BadFiles where it is no adapter.
    """
    if base is None:
        return found
    if found.kind != ADAPTER:
        raise BadFiles("It is a model, not an adapter: it has no base.")
    return replace(found, base=base)


def refreshed(folder: Path, manifest: Manifest) -> Manifest:
    """Return a manifest with the facts that this version tells of the files in a folder.

    One of a model that would be refused today stays as it is.
    """
    with suppress(BadFiles, OSError):
        told = {**vars(inspect(folder)), "base": manifest.base}  # it may have been named by hand
        return msgspec.structs.replace(manifest, **told)
    return manifest


def inspect_texts(folder: Path) -> str:
    """Check everything but the weights and return the kind. Raises BadFiles."""
    paths = model_files(folder)
    for path in open_files(folder, required(paths)):
        if path.endswith(".json"):
            # Of configs, as libraries read them; vocabularies and lists of modules may be arrays.
            is_config = path.endswith("config.json")
            read = read_json(folder / path) if is_config else read_any_json(folder / path)
            if needs_code(read):
                raise BadFiles(CODE)
    check_arrays(folder, paths)
    check_indices(folder, paths)
    if is_adapter(folder, paths):
        return ADAPTER
    kind = kind_of(folder)
    if is_pipeline(folder):
        check_index(folder)
    return kind
