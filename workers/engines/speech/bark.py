"""Bark: text to tokens of meaning, to coarse and then fine tokens of sound, to samples.

Each sentence is an :class:`Utterance` with a voice and a generator of its own, so what runs beside
it changes nothing. Alone and with the same seed it is what ``BarkModel.generate`` makes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from workers.engines.speech.gpt import Row, Stage
from workers.engines.speech.sampling import Sampler

Voice = dict[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Utterance:
    """One sentence on its way: ``text`` are token ids without padding."""

    text: list[int]
    voice: Voice | None
    generator: torch.Generator
    stage: str = "semantic"  #: semantic, coarse, fine or done
    row: Row | None = None
    semantic: list[int] = field(default_factory=list)
    history: torch.Tensor | None = None  #: coarse: the voice's tokens, then our own
    history_length: int = 0
    meaning: torch.Tensor | None = None  #: coarse: the voice's semantic tokens, then our own
    meaning_start: int = 0
    wanted: int = 0  #: coarse tokens to make
    in_window: int = 0  #: of them, those of the present window
    pending: int | None = None  #: the token that the next step reads
    samples: NDArray[np.float32] | None = None

    @property
    def made(self) -> int:
        """Coarse tokens so far."""
        return 0 if self.history is None else len(self.history) - self.history_length


class Bark:
    """``rows``: sentences at once in each of the two autoregressive stages."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model = model
        own = model.generation_config
        self._semantic = BarkSemanticGenerationConfig(**own.semantic_config)
        self._coarse = BarkCoarseGenerationConfig(**own.coarse_acoustics_config)
        self._fine = BarkFineGenerationConfig(**own.fine_acoustics_config)
        self._codebook: int = own.codebook_size
        self.sample_rate: int = own.sample_rate
        self._stages = {
            "semantic": Stage(model.semantic, rows),
            "coarse": Stage(model.coarse_acoustics, rows),
        }
        self._samplers = {
            "semantic": Sampler(model.semantic, self._semantic),
            "coarse": Sampler(model.coarse_acoustics, self._coarse),
        }
        codebooks = self._coarse.n_coarse_codebooks
        self._ratio = self._coarse.coarse_rate_hz / self._semantic.semantic_rate_hz * codebooks

    @property
    def longest_text(self) -> int:
        """Tokens of text that a sentence may have."""
        longest: int = self._semantic.max_input_semantic_length
        return longest

    @property
    def rows_used(self) -> int:
        return sum(stage.used for stage in self._stages.values())

    def step(self, utterances: list[Utterance]) -> None:
        """One token for each that is in an autoregressive stage and has a row there; the whole of
        what follows for one that is past them."""
        for name in ("semantic", "coarse"):
            self._advance(name, [each for each in utterances if each.stage == name])
        for each in utterances:
            if each.stage == "fine":
                self._finish(each)
                return

    def leave(self, utterance: Utterance) -> None:
        """Give its row back, wherever it is."""
        if utterance.row is not None:
            self._stages[utterance.stage].close(utterance.row)
            utterance.row = None

    # ---- autoregressive stages -------------------------------------------------------------------

    def _advance(self, name: str, utterances: list[Utterance]) -> None:
        stage = self._stages[name]
        ready: list[tuple[Utterance, torch.Tensor]] = []
        running = []
        for each in utterances:
            if each.row is None:
                each.row = stage.open()
            if each.row is None:
                continue
            if each.pending is None:
                prompt = self._prompt(name, each)
                if prompt is not None:
                    ready.append((each, stage.read(each.row, prompt)))
            else:
                running.append(each)
        if running:
            rows = [each.row for each in running if each.row is not None]
            tokens = [each.pending for each in running if each.pending is not None]
            logits = stage.step(rows, tokens)
            ready += list(zip(running, logits, strict=True))
        if ready:
            self._choose(name, ready)

    def _choose(self, name: str, ready: list[tuple[Utterance, torch.Tensor]]) -> None:
        logits = torch.stack([row for _, row in ready]).cpu()
        for number, (each, _) in enumerate(ready):
            self._forbid(name, each, logits[number])
        tokens = self._samplers[name].choose(logits, [each.generator for each, _ in ready])
        for (each, _), token in zip(ready, tokens, strict=True):
            if name == "semantic":
                self._take_semantic(each, token)
            else:
                self._take_coarse(each, token)

    def _forbid(self, name: str, utterance: Utterance, logits: torch.Tensor) -> None:
        """What cannot follow: in place, in one row of logits."""
        vocabulary = self._semantic.semantic_vocab_size
        if name == "semantic":
            end = self._semantic.semantic_pad_token
            logits[vocabulary:end] = -torch.inf
            logits[end + 1 :] = -torch.inf
        elif utterance.in_window % 2 == 0:  # the two coarse codebooks take turns
            logits[:vocabulary] = -torch.inf
            logits[vocabulary + self._codebook :] = -torch.inf
        else:
            logits[: vocabulary + self._codebook] = -torch.inf

    def _prompt(self, name: str, utterance: Utterance) -> torch.Tensor | None:
        if name == "semantic":
            return self._semantic_prompt(utterance)
        return self._coarse_prompt(utterance)

    def _semantic_prompt(self, utterance: Utterance) -> torch.Tensor:
        """Text and voice laid over each other, position by position."""
        config, stage = self._semantic, self._stages["semantic"]
        length = config.max_input_semantic_length
        text = torch.full((length,), config.text_pad_token, dtype=torch.long)
        text[: len(utterance.text)] = torch.tensor(utterance.text) + config.text_encoding_offset
        voice = torch.full((length,), config.semantic_pad_token, dtype=torch.long)
        if utterance.voice is not None:
            known = utterance.voice["semantic_prompt"][-length:]
            voice[: len(known)] = known
        infer = torch.tensor([config.semantic_infer_token])
        both = stage.embed(text.to(stage.device)) + stage.embed(voice.to(stage.device))
        return torch.cat([both, stage.embed(infer.to(stage.device))])

    def _take_semantic(self, utterance: Utterance, token: int) -> None:
        if token != self._semantic.eos_token_id:
            utterance.semantic.append(token)
            utterance.pending = token
            if len(utterance.semantic) < self._semantic.max_new_tokens:
                return
        self.leave(utterance)
        self._begin_coarse(utterance)

    def _begin_coarse(self, utterance: Utterance) -> None:
        codebooks = self._coarse.n_coarse_codebooks
        meaning, history = self._model.coarse_acoustics.preprocess_histories(
            max_coarse_history=self._coarse.max_coarse_history,
            semantic_to_coarse_ratio=self._ratio,
            batch_size=1,
            semantic_generation_config=self._semantic,
            codebook_size=self._codebook,
            history_prompt=utterance.voice,
        )
        own = torch.tensor(utterance.semantic, dtype=torch.long)
        utterance.meaning = torch.cat([meaning[0].cpu().long(), own])
        utterance.meaning_start = meaning.shape[1]
        utterance.history = history[0].cpu().long()
        utterance.history_length = history.shape[1]
        frames = int(np.floor(len(utterance.semantic) * self._ratio / codebooks))
        utterance.wanted = frames * codebooks
        utterance.stage, utterance.pending = "coarse", None
        if utterance.wanted == 0:
            utterance.stage, utterance.samples = "done", np.zeros(0, np.float32)

    def _coarse_prompt(self, utterance: Utterance) -> torch.Tensor:
        """The part of the meaning that is near, then the sound so far: a window of both."""
        config, stage = self._coarse, self._stages["coarse"]
        assert utterance.meaning is not None
        assert utterance.history is not None
        most = int(np.floor(config.max_coarse_history / self._ratio))
        at = utterance.meaning_start + round(utterance.made / self._ratio)
        near = utterance.meaning[max(0, at - most) :][: config.max_coarse_input_length]
        missing = config.max_coarse_input_length - len(near)
        near = functional.pad(near, (0, missing), value=config.coarse_semantic_pad_token)
        infer = torch.tensor([config.coarse_infer_token])
        sound = utterance.history[-config.max_coarse_history :]
        utterance.in_window = 0
        return stage.embed(torch.cat([near, infer, sound]).to(stage.device))

    def _take_coarse(self, utterance: Utterance, token: int) -> None:
        assert utterance.history is not None
        utterance.history = torch.cat([utterance.history, torch.tensor([token])])
        utterance.in_window += 1
        utterance.pending = token
        if utterance.made >= utterance.wanted:
            self.leave(utterance)
            utterance.stage, utterance.pending = "fine", None
        elif utterance.in_window >= self._coarse.sliding_window_len:
            utterance.pending = None  # the next window reads its prompt anew

    # ---- the rest --------------------------------------------------------------------------------

    def _finish(self, utterance: Utterance) -> None:
        """Fine tokens and samples, by the library's own code."""
        assert utterance.history is not None
        coarse = utterance.history[utterance.history_length :][None]
        with _drawing_from(utterance.generator):
            fine = self._model.fine_acoustics.generate(
                coarse.to(self._model.device),
                history_prompt=utterance.voice,
                semantic_generation_config=self._semantic,
                coarse_generation_config=self._coarse,
                fine_generation_config=self._fine,
                codebook_size=self._codebook,
            )
        samples = self._model.codec_decode(fine)[0]
        utterance.samples = samples.float().cpu().numpy()
        utterance.stage = "done"


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let code that knows only the global generator draw from this one."""
    kept = torch.random.get_rng_state()
    torch.random.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.random.get_rng_state())
        torch.random.set_rng_state(kept)
