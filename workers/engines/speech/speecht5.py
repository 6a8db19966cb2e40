"""Speaks with SpeechT5: it makes a spectrogram token by token, and a vocoder makes that sound.

Its voices are vectors that describe a speaker, each a file of the repository or named in the
settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.engines.base import Refused
from workers.engines.speech.model import (
    Utterance,
    check_speed,
    drawing_from,
    not_supported,
    unknown_voice,
)
from workers.protocol import SpeechJob

_LONGEST = 200  #: tokens of a piece; the speech of longer ones goes wrong


@dataclass(slots=True, eq=False, kw_only=True)
class _Utterance(Utterance):
    tokens: torch.Tensor
    speaker: torch.Tensor


class SpeechT5:
    """Speaks with one SpeechT5 and its vocoder."""

    rows_used = 0
    has_speed = False

    def __init__(
        self, model: Any, tokenizer: Any, vocoder: Any, voices: Mapping[str, torch.Tensor]
    ) -> None:
        self._model = model
        self.dtype: torch.dtype = model.dtype
        self._tokenizer = tokenizer
        self._vocoder = vocoder
        self._voices = dict(sorted(voices.items()))
        self._longest: int = min(_LONGEST, model.config.max_text_positions)
        self.sample_rate: int = vocoder.config.sampling_rate

    def resolve_voice(self, job: SpeechJob) -> str | None:
        check_speed(job)
        if job.language is not None:
            raise not_supported("language")
        if job.voice is None:
            return next(iter(self._voices))
        if job.voice not in self._voices:
            raise unknown_voice(list(self._voices))
        return job.voice

    def fits(self, text: str) -> bool:
        length = len(self._tokens(text))
        return length <= self._longest

    def start(self, text: str, voice: str | None, _speed: float | None, seed: int) -> _Utterance:
        assert voice is not None
        device = self._model.device
        return _Utterance(
            tokens=torch.tensor([self._tokens(text)], device=device),
            speaker=self._voices[voice].to(self._model.dtype)[None].to(device),
            generator=torch.Generator(device).manual_seed(seed),
        )

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text).input_ids
        return tokens

    def step(self, utterances: Sequence[_Utterance]) -> None:
        """Compute the first utterance, whole; parts of the model are random, hence its seed."""
        one = utterances[0]
        with drawing_from(one.generator):
            made = self._model.generate_speech(one.tokens, one.speaker, vocoder=self._vocoder)
        one.samples = made.float().cpu().numpy()

    def release(self, utterance: _Utterance) -> None:
        """Do nothing: an utterance holds nothing."""


def read_voices(files: Mapping[str, Path], width: int) -> dict[str, torch.Tensor]:
    """Read speaker vectors from .npy files by name. Raises Refused for a file that is none."""
    voices = {}
    for name, path in files.items():
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _broken(name) from error
        vector = array.reshape(-1)
        if len(vector) != width or not np.issubdtype(array.dtype, np.floating):
            raise _broken(name)
        voices[name] = torch.from_numpy(vector.astype(np.float32))
    return voices


def _broken(name: str) -> Refused:
    return Refused("MODEL_LOAD_FAILED", f"The voice {name} is no vector that this model takes.")
