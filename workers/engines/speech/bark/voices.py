"""Lists the voices of a Bark repository; the library would open other names as files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.engines.base import Refused
from workers.engines.speech.model import not_supported, unknown_language, unknown_voice

Voice = dict[str, torch.Tensor]

INDEX = "speaker_embeddings_path.json"
_PARTS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}  #: and their dimensions
_NAME = re.compile(r"(?:v2/)?(?P<language>[a-z]{2})_(?P<speaker>speaker_\d+)")


class Voices:
    """Knows the voices of one repository.

    ``semantic`` and ``codes`` are how many tokens of meaning, and in a codebook, there are.
    """

    def __init__(self, folder: Path, semantic: int, codes: int) -> None:
        """Read the index; voices of which a file is missing are left out."""
        self._folder = folder.resolve()
        self._limits = {"semantic_prompt": semantic, "coarse_prompt": codes, "fine_prompt": codes}
        self._known: dict[str, Voice] = {}
        path = folder / INDEX
        index = json.loads(path.read_text()) if path.is_file() else {}
        self._paths = {name: paths for name, paths in index.items() if self._is_whole(paths)}

    @property
    def names(self) -> list[str]:
        return sorted(self._paths)

    @property
    def languages(self) -> list[str]:
        found = {match["language"] for name in self._paths if (match := _NAME.fullmatch(name))}
        return sorted(found)

    def resolve(self, voice: str | None, language: str | None) -> str | None:
        """Return the preset that a request means, None for no voice at all. Raises Refused.

        A request names ``v2/en_speaker_1`` by itself, or ``speaker_1`` with the language ``en``.
        """
        if language is not None and not self.languages:
            raise not_supported("language")
        if language is not None and language not in self.languages:
            raise unknown_language(self.languages)
        if voice is None:
            return None if language is None else self._first(language)
        spoken = language or "en"
        for name in (voice, f"v2/{voice}", f"v2/{spoken}_{voice}", f"{spoken}_{voice}"):
            if name in self._paths:
                return name
        raise unknown_voice(self.names)

    def load(self, name: str) -> Voice:
        """Return a preset's tokens, on the CPU; they are read once."""
        if name not in self._known:
            self._known[name] = {part: torch.from_numpy(self._read(name, part)) for part in _PARTS}
        return self._known[name]

    def _first(self, language: str) -> str | None:
        matching = [name for name in self.names if re.search(rf"(?:^|/){language}_", name)]
        second = [name for name in matching if name.startswith("v2/")]
        return next(iter(second or matching), None)

    def _read(self, name: str, part: str) -> Any:
        array = np.load(self._folder / self._paths[name][part], allow_pickle=False)
        # A token that is none would be read from beyond a table, which ends a CUDA process.
        sound = array.ndim == _PARTS[part] and np.issubdtype(array.dtype, np.integer)
        if not sound or not array.size or array.min() < 0 or array.max() >= self._limits[part]:
            raise Refused("MODEL_LOAD_FAILED", f"The voice {name} is damaged.")
        return array.astype(np.int64)

    def _is_whole(self, paths: Any) -> bool:
        """True if the index names all parts, and each is a file of this repository."""
        if not isinstance(paths, dict):
            return False
        files = [self._folder / str(paths.get(part, "")) for part in _PARTS]
        inside = all(file.resolve().is_relative_to(self._folder) for file in files)
        return inside and all(file.suffix == ".npy" and file.is_file() for file in files)
