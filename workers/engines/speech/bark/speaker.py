"""Presents a Bark to the engine, with its tokenizer and its voices."""

from collections.abc import Sequence
from typing import Any

import torch

from workers.engines.base import Refused
from workers.engines.languages import language_code
from workers.engines.speech.bark.model import Bark, BarkUtterance
from workers.engines.speech.bark.voices import Voices
from workers.engines.speech.model import check_speed
from workers.protocol import SpeechJob


class BarkSpeaker:
    """Speaks with one Bark; ``rows`` is how many sentences it computes at once."""

    has_speed = False

    def __init__(self, model: Any, tokenizer: Any, voices: Voices, rows: int) -> None:
        self._device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._tokenizer = tokenizer
        self.voices = voices
        self.bark = Bark(model, rows)
        self.sample_rate = self.bark.sample_rate

    def resolve_voice(self, job: SpeechJob) -> str | None:
        check_speed(job)
        language = job.language and (language_code(job.language) or job.language)
        return self.voices.resolve(job.voice, language)

    def fits(self, text: str) -> bool:
        return len(self._tokens(text)) <= self.bark.longest_text

    def start(self, text: str, voice: str | None, _speed: float | None, seed: int) -> BarkUtterance:
        tokens = self._tokens(text)
        if not tokens:
            raise Refused("INVALID_REQUEST", "There is nothing to say.", param="text")
        return BarkUtterance(
            text=tokens,
            voice=self.voices.load(voice) if voice else None,
            generator=torch.Generator(self._device).manual_seed(seed),
        )

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found

    def step(self, utterances: Sequence[BarkUtterance]) -> None:
        self.bark.step(utterances)

    def release(self, utterance: BarkUtterance) -> None:
        self.bark.release(utterance)

    @property
    def rows_used(self) -> int:
        return self.bark.rows_used
