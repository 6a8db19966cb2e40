"""Decodes windows to tokens: several attempts together, a token of each at a step.

The rules are the library's own logits processors, in the library's order. Its loop is not used: it
encodes a window again for each attempt, knows one file at a time, and cannot be interrupted.
"""

import math
import zlib
from dataclasses import dataclass, field

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopKLogitsWarper,
    WhisperTimeStampLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from workers.engines.transcription.loading import LoadedWhisper

LOOP_TOKENS = 64  #: of text without times, that a loop has at least
_LONGEST_PHRASE = 24  #: tokens of what is repeated
_TIMES = 5  #: that it is said at least
_LOOK_TOKENS = 8  #: between two looks


@dataclass(slots=True, eq=False)
class Attempt:
    """Holds one attempt to decode a window; the decoder reads ``prompt`` first."""

    prompt: list[int]
    timestamps: bool
    temperature: float
    random: torch.Generator
    tokens: list[int] = field(default_factory=list)  #: with the end token, if it came to one
    logprobs: list[float] = field(default_factory=list)  #: of each of them
    no_speech_prob: float = 0.0

    @property
    def avg_logprob(self) -> float:
        return sum(self.logprobs) / len(self.tokens)

    def compression_ratio(self, vocabulary: int) -> float:
        """Return how well the tokens' bytes compress: text that repeats itself does very well."""
        size = int(math.log2(vocabulary) / 8) + 1
        raw = b"".join(token.to_bytes(size, "little") for token in self.tokens)
        return len(raw) / len(zlib.compress(raw))


def is_loop(tokens: list[int]) -> bool:
    """Tell whether text ends in one phrase, said again and again for many tokens."""
    for period in range(1, _LONGEST_PHRASE + 1):
        span = max(LOOP_TOKENS, _TIMES * period)
        last = tokens[-span:]
        if len(last) == span and last[period:] == last[:-period]:
            return True
    return False


class DecodeBatch:
    """Decodes attempts whose prompts are of one length and which all have timestamps, or none."""

    def __init__(self, loaded: LoadedWhisper, encoded: torch.Tensor, attempts: list[Attempt]):
        """``encoded`` is the encoder's output of each window: (attempts, positions, size)."""
        self.attempts = list(attempts)
        self._loaded = loaded
        self._decoding_config = loaded.decoding
        self._encoded = encoded
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._ids = torch.tensor([each.prompt for each in attempts], device=loaded.device)
        self._processors = self._make_processors(attempts[0])

    def _make_processors(self, attempt: Attempt) -> LogitsProcessorList:
        found = LogitsProcessorList()
        decoding, begin, device = self._decoding_config, len(attempt.prompt), self._loaded.device
        if decoding.suppressed_first:
            found.append(
                SuppressTokensAtBeginLogitsProcessor(
                    decoding.suppressed_first, begin, device=device
                )
            )
        if decoding.suppressed:
            found.append(SuppressTokensLogitsProcessor(decoding.suppressed, device=device))
        if attempt.timestamps:
            generation = self._loaded.model.generation_config
            found.append(WhisperTimeStampLogitsProcessor(generation, begin_index=begin))
        return found

    def step(self) -> list[Attempt]:
        """Decode one more token of each attempt; removes and returns those that have ended."""
        first = not self.attempts[0].tokens
        logits = self._forward(self._ids if first else self._ids[:, -1:])
        if first:
            self._set_no_speech_prob(logits)
        scores = self._processors(self._ids, logits[:, -1].to(torch.float32, copy=True))
        tokens = self._choose(scores)
        self._ids = torch.cat((self._ids, torch.tensor(tokens, device=scores.device)[:, None]), 1)
        ended = self._ids.shape[1] >= self._decoding_config.max_tokens
        going_on = (
            [] if ended else [i for i, t in enumerate(tokens) if t != self._decoding_config.end]
        )
        staying = [i for i in going_on if not self._repeats_itself(self.attempts[i])]
        return self._keep(staying)

    def _repeats_itself(self, attempt: Attempt) -> bool:
        """Tell whether an attempt has gone into a loop, which lasts to the window's last token."""
        if len(attempt.tokens) < LOOP_TOKENS or len(attempt.tokens) % _LOOK_TOKENS:
            return False
        first = self._decoding_config.first_timestamp
        return is_loop([token for token in attempt.tokens if token < first])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self._loaded.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded),
            decoder_input_ids=ids,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _set_no_speech_prob(self, logits: torch.Tensor) -> None:
        """Read how likely it is that no one speaks, off the token after the transcript's start."""
        at = self.attempts[0].prompt.index(self._decoding_config.start)
        probs = logits[:, at].float().softmax(dim=-1)[:, self._decoding_config.no_speech_token]
        for attempt, prob in zip(self.attempts, probs.tolist(), strict=True):
            attempt.no_speech_prob = prob

    def _choose(self, scores: torch.Tensor) -> list[int]:
        best = scores.log_softmax(dim=-1).max(dim=-1)
        tokens, logprobs = best.indices.tolist(), best.values.tolist()
        for row, attempt in enumerate(self.attempts):
            if attempt.temperature > 0:
                tokens[row], logprobs[row] = self._draw(scores[row : row + 1], attempt)
            attempt.tokens.append(tokens[row])
            attempt.logprobs.append(logprobs[row])
        return list(tokens)

    def _draw(self, scores: torch.Tensor, attempt: Attempt) -> tuple[int, float]:
        """Draw by the attempt's own generator, on the CPU, so that no other attempt matters."""
        warped = scores.cpu() / attempt.temperature
        if self._decoding_config.top_k:
            warped = TopKLogitsWarper(self._decoding_config.top_k)(torch.empty(0), warped)
        chances = warped.softmax(-1)
        if not chances.isfinite().all():  # nothing can be drawn: the attempt ends, and is no number
            return self._decoding_config.end, math.nan
        token = int(torch.multinomial(chances, 1, generator=attempt.random))
        return token, float((warped * attempt.temperature).log_softmax(-1)[0, token])

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt whose result is not wanted any more."""
        self._keep([i for i, each in enumerate(self.attempts) if each is not attempt])

    def _keep(self, rows: list[int]) -> list[Attempt]:
        """Keep only these rows; returns the attempts of the others."""
        left = [each for i, each in enumerate(self.attempts) if i not in rows]
        if left and rows:
            index = torch.tensor(rows, device=self._ids.device)
            self._ids = self._ids[index]
            self._encoded = self._encoded[index]
            if self.attempts[0].tokens:
                self._cache.batch_select_indices(index)
        self.attempts = [self.attempts[i] for i in rows]
        return left
