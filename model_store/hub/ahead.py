"""Looks ahead to what a repository will be as a model, so that its memory is known before it comes.

The sizes of its weights are listed, the rest its configs say, and one header the number format.
"""

import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from model_store.errors import BadFiles
from model_store.headers import decode_header, header_end
from model_store.hub.api import Listing
from model_store.hub.choice import Choice, Read
from model_store.hub.partials import Wanted
from model_store.inspection.ahead import inspect_ahead
from model_store.inspection.weights import dtype_of_most
from model_store.manifest import ADAPTER, HUB, Manifest
from model_store.selection import INDEX, WEIGHTS

#: returns the first bytes of a file, or None where they do not come
Start = Callable[[Wanted, int], bytes | None]
_CONFIGS = ("config.json", INDEX, "modules.json", "config_sentence_transformers.json")
_MOST_CONFIG_BYTES = 20_000_000
_FIRST_BYTES = 1 << 17  #: that hold most headers whole
_LONGEST_NAME = 100
_MOST_HEADER_BYTES = 1 << 23  #: that are fetched for this


def expected_model(
    choice: Choice, listing: Listing, name: str, read: Read, start: Start
) -> Manifest | None:
    """Return what decides the memory of a model that is planned; None where that is not known.

    Fetches configs by ``read``, and the header of the largest file by ``start``. Raises what they
    raise, but nothing for files that say nothing: those are refused later, if they are to be.
    """
    if choice.kind in (None, ADAPTER):
        return None
    weights = {file.path: file.size for file in choice.heavy}
    with tempfile.TemporaryDirectory() as folder:
        for file in choice.texts:
            if file.path.rpartition("/")[2] in _CONFIGS and file.size <= _MOST_CONFIG_BYTES:
                target = Path(folder, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(read(file), target)
        try:
            dtype = _dtype(choice.heavy, start)
            found = inspect_ahead(Path(folder), choice.kind, weights, dtype)
        except BadFiles:
            return None
    # It is told to the server in a line, which what a config claims must not lengthen.
    found.voices, found.languages = (), ()
    found.model_type = found.model_type and found.model_type[:_LONGEST_NAME]
    return Manifest(
        name=name,
        source=f"{HUB}{listing.repo}",
        revision=listing.sha,
        total_bytes=sum(file.size for file in choice.wanted),
        created_at=datetime.now(UTC),
        **vars(found),
    )


def _dtype(files: list[Wanted], start: Start) -> str | None:
    """Return the number format of most of the largest file's bytes. Raises BadFiles."""
    plain = [file for file in files if file.path.endswith(WEIGHTS)]
    if not plain:
        return None
    largest = max(plain, key=lambda file: file.size)
    begun = start(largest, _FIRST_BYTES) or b""
    end = header_end(begun)
    if end is not None and len(begun) < end <= _MOST_HEADER_BYTES:
        begun = start(largest, end) or b""
    if end is None or len(begun) < end:
        return None
    return dtype_of_most(decode_header(begun[:end], largest.path))
