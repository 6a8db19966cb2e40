"""Bark turns text to semantic tokens, these to coarse and then fine acoustic tokens, to samples.

Each sentence has a voice and a generator of its own, so what runs beside it changes nothing.
Alone and with the same seed it is what ``BarkModel.generate`` makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from workers.engines.cuda_graphs import cuda_capture
from workers.engines.speech.bark.fine import FineStage, FineState
from workers.engines.speech.bark.gpt import CacheSlot, Stage
from workers.engines.speech.bark.sampling import NOT_A_NUMBER, Sampler
from workers.engines.speech.bark.voices import Voice
from workers.engines.speech.model import Utterance

#: sentences whose prompts, or windows of the fine stage, are read together: a CPU is busy with one
_TOGETHER = {"cpu": 1, "cuda": 8}


@dataclass(slots=True, eq=False, kw_only=True)
class BarkUtterance(Utterance):
    """Holds a sentence in Bark; ``text`` are token ids without padding."""

    text: list[int]
    voice: Voice | None
    stage: str = "semantic"  #: semantic, coarse, fine or done
    row: CacheSlot | None = None
    semantic: list[int] = field(default_factory=list)
    history: torch.Tensor | None = None  #: coarse: the voice's tokens, then our own
    history_length: int = 0
    known_semantic: torch.Tensor | None = None  #: coarse: the voice's tokens, then our own
    semantic_start: int = 0  #: coarse: where our own begin
    target: int = 0  #: coarse tokens to make
    near_start: int = 0  #: the first of the semantic tokens in the present window's prompt
    in_window: int = 0  #: coarse tokens of the present window
    pending: int | None = None  #: the token that the next step reads
    fine: FineState | None = None

    @property
    def is_held(self) -> bool:
        return self.row is not None or self.fine is not None

    @property
    def made(self) -> int:
        """Return how many coarse tokens are made so far."""
        return 0 if self.history is None else len(self.history) - self.history_length


class Bark:
    """Computes sentences, up to ``rows`` at once in each of the two autoregressive stages."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model = model
        own = model.generation_config
        self._semantic = BarkSemanticGenerationConfig(**own.semantic_config)
        self._coarse = BarkCoarseGenerationConfig(**own.coarse_acoustics_config)
        fine = BarkFineGenerationConfig(**own.fine_acoustics_config)
        self._codebook: int = own.codebook_size
        self._codebooks: int = self._coarse.n_coarse_codebooks
        self.sample_rate: int = own.sample_rate
        vocabulary = self._semantic.semantic_vocab_size
        self._answers = {
            "semantic": range(self._semantic.semantic_pad_token + 1),
            "coarse": range(vocabulary, model.coarse_acoustics.config.output_vocab_size),
        }
        # One for both: the stages take turns, and read their logits before the other one's turn.
        capture = cuda_capture() if model.device.type == "cuda" else None
        self._stages = {
            "semantic": Stage(model.semantic, rows, self._answers["semantic"], capture),
            "coarse": Stage(model.coarse_acoustics, rows, self._answers["coarse"], capture),
        }
        self._samplers = {
            "semantic": Sampler(model.semantic, self._semantic),
            "coarse": Sampler(model.coarse_acoustics, self._coarse),
        }
        self._fine = FineStage(model.fine_acoustics, fine, self._codebooks, self._codebook)
        self._ratio = self._coarse.coarse_rate_hz / self._semantic.semantic_rate_hz
        self._ratio *= self._codebooks
        self._together = _TOGETHER[model.device.type]

    @property
    def longest_text(self) -> int:
        """Return how many tokens of text a sentence may have."""
        longest: int = self._semantic.max_input_semantic_length
        return longest

    @property
    def rows_used(self) -> int:
        return sum(stage.used for stage in self._stages.values())

    def step(self, utterances: Sequence[BarkUtterance]) -> None:
        """Compute a token of each utterance that has a row in an autoregressive stage.

        Of those past these stages, it computes the next codebook of some, the longest there first.
        A step that fails can be repeated, with these or fewer: nothing is lost or drawn twice.
        """
        self._advance("semantic", [each for each in utterances if each.stage == "semantic"])
        for each in utterances:
            if each.stage == "coarse" and each.history is None:
                self._begin_coarse(each)
        self._advance("coarse", [each for each in utterances if each.stage == "coarse"])
        fine = [each for each in utterances if each.stage == "fine"]
        if fine:
            self._compute_fine(fine[: self._together])

    def release(self, utterance: BarkUtterance) -> None:
        """Free an utterance's row, in whichever stage it is."""
        if utterance.row is not None:
            self._stages[utterance.stage].close(utterance.row)
            utterance.row = None

    # ---- autoregressive stages -------------------------------------------------------------------

    def _advance(self, name: str, utterances: list[BarkUtterance]) -> None:
        stage = self._stages[name]
        for each in utterances:
            if each.row is None:
                each.row = stage.open()
        present = [each for each in utterances if each.row is not None]
        filled = [(each.row, each.row.length) for each in present if each.row is not None]
        try:
            ready = self._compute(name, present)
            tokens = self._choose(name, ready)
        except RuntimeError:
            for row, length in filled:  # its last token is to be read once more
                row.length = length
            raise
        take = self._take_semantic if name == "semantic" else self._take_coarse
        for each, token in zip((each for group, _ in ready for each in group), tokens, strict=True):
            if token == NOT_A_NUMBER:
                self._break(each)
            else:
                take(each, token)

    def _break(self, utterance: BarkUtterance) -> None:
        """End a sentence whose logits are not finite: its samples become NaN."""
        if utterance.row is not None:
            self._stages[utterance.stage].scrub(utterance.row)
        self.release(utterance)
        utterance.stage, utterance.fine = "done", None
        utterance.samples = np.full(1, np.nan, np.float32)

    def _compute(
        self, name: str, present: list[BarkUtterance]
    ) -> list[tuple[list[BarkUtterance], torch.Tensor]]:
        """Return the logits (sentences, answers) of the next token, by groups of sentences."""
        running = [each for each in present if each.pending is not None]
        ready = self._read(name, [each for each in present if each.pending is None])
        if running:
            rows = [each.row for each in running if each.row is not None]
            tokens = [each.pending for each in running if each.pending is not None]
            ready.append((running, self._stages[name].step(rows, tokens)))
        return ready

    def _read(
        self, name: str, utterances: list[BarkUtterance]
    ) -> list[tuple[list[BarkUtterance], torch.Tensor]]:
        """Read prompts, those of one length together; returns the logits that follow them."""
        prompt = self._semantic_prompt if name == "semantic" else self._coarse_prompt
        by_length: dict[int, list[tuple[BarkUtterance, torch.Tensor]]] = {}
        for each in utterances:
            embeds = prompt(each)
            by_length.setdefault(len(embeds), []).append((each, embeds))
        found = []
        for alike in by_length.values():
            for first in range(0, len(alike), self._together):
                group = alike[first : first + self._together]
                rows = [each.row for each, _ in group if each.row is not None]
                embeds = torch.stack([each for _, each in group])
                logits = self._stages[name].read(rows, embeds)
                found.append(([each for each, _ in group], logits))
        return found

    def _choose(
        self, name: str, ready: list[tuple[list[BarkUtterance], torch.Tensor]]
    ) -> list[int]:
        """Choose the next token of each sentence, in the order of the groups."""
        if not ready:
            return []
        utterances = [each for group, _ in ready for each in group]
        answers = torch.cat([logits for _, logits in ready])
        # The noise that chooses is drawn for the whole vocabulary, as the library does.
        size = self._stages[name].vocabulary
        logits = answers.new_full((len(utterances), size), -torch.inf)
        logits[:, self._answers[name].start : self._answers[name].stop] = answers
        for number, each in enumerate(utterances):
            self._forbid(name, each, logits[number])
        return self._samplers[name].choose(logits, [each.generator for each in utterances])

    def _forbid(self, name: str, utterance: BarkUtterance, logits: torch.Tensor) -> None:
        """Mask the answers that cannot follow here: in place, in one row of logits."""
        vocabulary = self._semantic.semantic_vocab_size
        if name == "semantic":
            logits[vocabulary : self._semantic.semantic_pad_token] = -torch.inf
        elif utterance.in_window % 2 == 0:  # the two coarse codebooks take turns
            logits[vocabulary + self._codebook :] = -torch.inf
        else:  # the library does not forbid the few tokens behind the second either
            logits[vocabulary : vocabulary + self._codebook] = -torch.inf

    def _semantic_prompt(self, utterance: BarkUtterance) -> torch.Tensor:
        """Return the sum of the text's and the voice's embeddings, position by position."""
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

    def _take_semantic(self, utterance: BarkUtterance, token: int) -> None:
        if token != self._semantic.eos_token_id:
            utterance.semantic.append(token)
            utterance.pending = token
            if len(utterance.semantic) < self._semantic.max_new_tokens:
                return
        self.release(utterance)
        utterance.stage, utterance.pending = "coarse", None

    def _begin_coarse(self, utterance: BarkUtterance) -> None:
        semantic, history = self._model.coarse_acoustics.preprocess_histories(
            max_coarse_history=self._coarse.max_coarse_history,
            semantic_to_coarse_ratio=self._ratio,
            batch_size=1,
            semantic_generation_config=self._semantic,
            codebook_size=self._codebook,
            history_prompt=utterance.voice,
        )
        own = torch.tensor(utterance.semantic, dtype=torch.long)
        before = history[0].cpu().long()
        utterance.known_semantic = torch.cat([semantic[0].cpu().long(), own])
        utterance.semantic_start = semantic.shape[1]
        utterance.history, utterance.history_length = before, len(before)
        frames = int(np.floor(len(utterance.semantic) * self._ratio / self._codebooks))
        utterance.target = frames * self._codebooks
        if utterance.target == 0:
            utterance.stage, utterance.samples = "done", np.zeros(0, np.float32)

    def _coarse_prompt(self, utterance: BarkUtterance) -> torch.Tensor:
        """Return a window of the nearest semantic tokens, then of the coarse tokens so far."""
        config, stage = self._coarse, self._stages["coarse"]
        assert utterance.known_semantic is not None
        assert utterance.history is not None
        utterance.near_start = self._near_start(utterance)
        near = utterance.known_semantic[utterance.near_start :][: config.max_coarse_input_length]
        missing = config.max_coarse_input_length - len(near)
        near = functional.pad(near, (0, missing), value=config.coarse_semantic_pad_token)
        infer = torch.tensor([config.coarse_infer_token])
        sound = utterance.history[-config.max_coarse_history :]
        return stage.embed(torch.cat([near, infer, sound]).to(stage.device))

    def _take_coarse(self, utterance: BarkUtterance, token: int) -> None:
        assert utterance.history is not None
        utterance.history = torch.cat([utterance.history, torch.tensor([token])])
        utterance.in_window += 1
        utterance.pending = token
        if utterance.made >= utterance.target:
            self.release(utterance)
            utterance.stage, utterance.pending = "fine", None
        elif utterance.in_window >= self._coarse.sliding_window_len:
            self._next_window(utterance)

    def _next_window(self, utterance: BarkUtterance) -> None:
        """Begin a window; its prompt is read unless it only continues the present one's."""
        assert utterance.history is not None
        utterance.in_window = 0
        moved = self._near_start(utterance) != utterance.near_start
        if moved or len(utterance.history) > self._coarse.max_coarse_history:
            utterance.pending = None

    def _near_start(self, utterance: BarkUtterance) -> int:
        most: int = int(np.floor(self._coarse.max_coarse_history / self._ratio))
        at: int = utterance.semantic_start + round(utterance.made / self._ratio)
        return max(0, at - most)

    # ---- the rest --------------------------------------------------------------------------------

    def _begin_fine(self, utterance: BarkUtterance) -> FineState:
        assert utterance.history is not None
        own = utterance.history[utterance.history_length :].view(-1, self._codebooks)
        coarse = (own - self._semantic.semantic_vocab_size).remainder(self._codebook)
        voice = utterance.voice["fine_prompt"] if utterance.voice is not None else None
        return self._fine.begin(coarse.to(self._model.device), voice)

    def _compute_fine(self, utterances: list[BarkUtterance]) -> None:
        for each in utterances:
            each.fine = each.fine or self._begin_fine(each)
        # One that is done already could not be decoded the last time.
        rest = [(u.fine, u.generator) for u in utterances if u.fine and not u.fine.done]
        if rest:
            self._fine.step([state for state, _ in rest], [generator for _, generator in rest])
        ended = [each for each in utterances if each.fine is not None and each.fine.done]
        whole = [each for each in ended if each.fine is not None and each.fine.is_finite]
        for each in ended:
            if each not in whole:
                self._break(each)
        if whole:
            self._decode(whole)

    def _decode(self, utterances: list[BarkUtterance]) -> None:
        """Decode finished sentences to samples, together if the codec never looks ahead."""
        sounds = [each.fine.own_codes for each in utterances if each.fine is not None]
        longest = max(sound.shape[1] for sound in sounds)
        if not self._model.codec_model.config.use_causal_conv:
            for each, sound in zip(utterances, sounds, strict=True):
                self._finish(each, self._samples(sound[None])[0])
            return
        padded = [functional.pad(sound, (0, longest - sound.shape[1])) for sound in sounds]
        samples = self._samples(torch.stack(padded))
        each_token = samples.shape[1] // longest
        for number, (each, sound) in enumerate(zip(utterances, sounds, strict=True)):
            self._finish(each, samples[number, : sound.shape[1] * each_token])

    def _samples(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decode (sentences, codebooks, length) to (sentences, samples)."""
        samples: torch.Tensor = self._model.codec_decode(tokens)
        return samples

    def _finish(self, utterance: BarkUtterance, samples: torch.Tensor) -> None:
        utterance.samples = samples.float().cpu().numpy()
        utterance.stage, utterance.fine = "done", None
