"""Speaks with VITS models, such as MMS's of a thousand languages: a sentence in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers.models.vits.tokenization_vits import has_non_roman_characters

from workers.engines.base import Refused
from workers.engines.speech.model import (
    Utterance,
    drawing_from,
    not_supported,
    unknown_language,
    unknown_voice,
)
from workers.protocol import SpeechJob

_LONGEST = 600  #: tokens of a piece, every other of which is a blank; memory grows by the square


@dataclass(slots=True, eq=False, kw_only=True)
class _Utterance(Utterance):
    tokens: torch.Tensor
    speaker: int | None  #: the number of its voice
    rate: float


class Vits:
    """Speaks with one VITS model, whose voices are the numbers of its speakers."""

    rows_used = 0
    has_speed = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if tokenizer.phonemize:
            message = "This model reads phonemes, which need espeak; only models of letters run."
            raise Refused("MODEL_LOAD_FAILED", message)
        self._model = model
        self.dtype: torch.dtype = model.dtype
        self._tokenizer = tokenizer
        self._language: str | None = tokenizer.language
        self.sample_rate: int = model.config.sampling_rate
        count = model.config.num_speakers
        self._voices = [f"speaker_{number}" for number in range(count)] if count > 1 else []

    def resolve_voice(self, job: SpeechJob) -> str | None:
        if job.language is not None:
            self._check_language(job.language)
        if job.voice is None:
            return self._voices[0] if self._voices else None
        if job.voice not in self._voices:
            raise unknown_voice(self._voices)
        return job.voice

    def _check_language(self, language: str) -> None:
        """Raise Refused for a language that is not the model's, by its three letters or two; a
        region after them is of no account."""
        if self._language is None:
            raise not_supported("language")
        plain = language.lower().replace("_", "-").partition("-")[0]
        if plain not in (self._language, self._language[:2]):
            raise unknown_language([self._language])

    def fits(self, text: str) -> bool:
        return len(self._tokens(text)) <= _LONGEST

    def start(self, text: str, voice: str | None, speed: float | None, seed: int) -> _Utterance:
        tokens = self._tokens(text)
        if len(tokens) <= 1:  # a blank at most
            message = "One of the sentences has none of this model's letters."
            raise Refused("INVALID_REQUEST", message, param="text")
        device = self._model.device
        return _Utterance(
            tokens=torch.tensor([tokens], device=device),
            speaker=None if voice is None else self._voices.index(voice),
            rate=self._model.speaking_rate * (1.0 if speed is None else speed),
            generator=torch.Generator(device).manual_seed(seed),
        )

    def _tokens(self, text: str) -> list[int]:
        if self._tokenizer.is_uroman and has_non_roman_characters(text):
            text = _romanizer().romanize_string(text)
        tokens: list[int] = self._tokenizer(text).input_ids
        return tokens

    def step(self, utterances: Sequence[_Utterance]) -> None:
        """Compute the first utterance, whole."""
        one = utterances[0]
        with drawing_from(one.generator):
            made = self._model(
                input_ids=one.tokens, speaker_id=one.speaker, speaking_rate=one.rate
            ).waveform[0]
        one.samples = made.float().cpu().numpy()

    def release(self, utterance: _Utterance) -> None:
        """Do nothing: an utterance holds nothing."""


@cache
def _romanizer() -> Any:
    """Return what writes other scripts in Latin letters, as MMS's models want; it reads tables."""
    import uroman

    return uroman.Uroman()
