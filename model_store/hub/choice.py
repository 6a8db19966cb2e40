"""Chooses which files of a repository are fetched, by what its small files say.

What is not a model that can be served is refused here, before any weights come.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import BadFiles
from model_store.hub.api import Listing
from model_store.hub.partials import Wanted
from model_store.inspection import components, inspect_texts
from model_store.inspection.adapter import check_config
from model_store.inspection.card import CARD, is_of_lora
from model_store.kinds import read_json
from model_store.manifest import ADAPTER
from model_store.pickles import pickled
from model_store.selection import (
    ADAPTER_CONFIG,
    INDEX,
    PICKLES,
    WEIGHTS,
    adapter_files,
    indices,
    other_layout,
    select,
)

HEAVY = (WEIGHTS, *PICKLES)
_TELLING = (INDEX, "config.json", "modules.json", "config_sentence_transformers.json")
_MOST_ADAPTER_BYTES = 2_000_000_000  #: whole pipelines in one file are larger
_MOST_TEXT_BYTES = 100_000_000  #: of a config or an index of weights
#: how the files of tokenizers begin or end; a byte-level one has its settings only
_TOKENIZERS = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "bpe", "tekken")
_VOCABULARIES = (".model", ".tiktoken", ".vocab")

Read = Callable[[Wanted], Path]  #: fetches a small file


@dataclass(frozen=True)
class Choice:
    """Lists the files to fetch, texts first, and the kind of model that they make."""

    wanted: tuple[Wanted, ...]
    kind: str | None  #: None: chosen by patterns, which may leave out anything
    pickles: tuple[str, ...] = ()  #: weights that are to be converted

    @property
    def heavy(self) -> list[Wanted]:
        return [file for file in self.wanted if file.path.endswith(HEAVY)]

    @property
    def texts(self) -> list[Wanted]:
        return [file for file in self.wanted if not file.path.endswith(HEAVY)]


def choose(listing: Listing, include: Sequence[str], read: Read, *, allow_pickles: bool) -> Choice:
    """Choose the files of a repository. Raises BadFiles for what cannot be served."""
    files = listing.files
    if include:
        return Choice(_ordered(files, select(files, include)), None)
    if chosen := adapter_files(files):
        if _may_be_adapter(files, chosen, read):
            return _adapter(files, chosen, read)
        raise BadFiles(other_layout(chosen[0]))
    pickles = pickled(files) if allow_pickles else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in (path for path in _TELLING if path in files):
            _put(files[path], folder, read)
        parts = components(read_json(folder / INDEX)) if INDEX in files else None
        select(files, (), parts, pickles)  # what has no weights at all is refused for that
        named = indices(files, parts)
        for path in named:
            _put(files[path], folder, read)
        for part in {path.partition("/")[0] for path in files if "/" in path}:
            (folder / part).mkdir(exist_ok=True)
        kind = inspect_texts(folder)
        shards = {path: set(read_json(folder / path)["weight_map"].values()) for path in named}
    chosen = select(files, (), parts, pickles, shards)
    if kind == "text" and not any(map(_is_of_tokenizer, chosen)):
        raise BadFiles(
            "The repository has no tokenizer, without which no text can be read or written; the "
            "one it was made from may have it."
        )
    taken = tuple(path for path in chosen if path in pickles)
    return Choice(_ordered(files, chosen), kind, taken)


def _ordered(files: dict[str, Wanted], chosen: list[str]) -> tuple[Wanted, ...]:
    ordered = sorted(chosen, key=lambda path: (path.endswith(HEAVY), path))
    return tuple(files[path] for path in ordered)


def _may_be_adapter(files: dict[str, Wanted], chosen: list[str], read: Read) -> bool:
    """Tell whether something says that files are an adapter's: a config, a name or the card.

    A single file of weights may be much else, and its header comes with it only.
    """
    if any("lora" in path.lower() for path in chosen) or ADAPTER_CONFIG in chosen:
        return True
    cards = (path for path in chosen if path == CARD and files[path].size < _MOST_TEXT_BYTES)
    return any(is_of_lora(read(files[path]).read_text("utf-8", "replace")) for path in cards)


def _adapter(files: dict[str, Wanted], chosen: list[str], read: Read) -> Choice:
    """Choose the files of an adapter, or what may be one: its header tells, once it is here."""
    if ADAPTER_CONFIG in chosen:
        check_config(read_json(read(_text(files[ADAPTER_CONFIG]))))
    select(chosen)
    heavy = [path for path in chosen if path.endswith(WEIGHTS)]
    if any(files[path].size > _MOST_ADAPTER_BYTES for path in heavy):
        raise BadFiles(
            f"The repository has no config.json beside {heavy[0]}, which is too large for an "
            "adapter; a model in Hugging Face layout is needed."
        )
    return Choice(_ordered(files, chosen), ADAPTER)


def _put(file: Wanted, folder: Path, read: Read) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(read(_text(file)), target)


def _text(file: Wanted) -> Wanted:
    if file.size > _MOST_TEXT_BYTES:
        raise BadFiles(f"{file.path} is too large for what it is.")
    return file


def _is_of_tokenizer(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(_TOKENIZERS) or name.endswith(_VOCABULARIES)
