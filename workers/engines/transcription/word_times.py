"""Computes the times of words from what the decoder attends to at each token."""

from typing import Any

import torch
from transformers.generation.utils import GenerateEncoderDecoderOutput
from transformers.models.whisper.tokenization_whisper import (
    LANGUAGES,
    _combine_tokens_into_words,
)

from workers.engines.transcription.loading import LoadedWhisper
from workers.protocol import Word


def token_times(
    loaded: LoadedWhisper, encoded: torch.Tensor, prompt: list[int], tokens: list[int], frames: int
) -> list[float]:
    """Return the end of each of ``tokens`` in seconds of its window, as generate() does.

    ``encoded`` is the encoder's output of the window, of which ``frames`` hold audio of the file.
    The tokens are read once more, with the plain attention, which alone shows its weights; no other
    window pays for it.
    """
    read = torch.tensor([[*prompt, *tokens[:-1]]], device=loaded.device)
    attentions = _attentions(loaded, encoded, read)
    output = GenerateEncoderDecoderOutput(sequences=read, cross_attentions=(attentions,))
    seen = max(frames, loaded.decoding.stride)
    found: Any = loaded.model._extract_token_timestamps(
        output,
        loaded.decoding.alignment_heads,
        num_frames=torch.tensor([seen]),
        num_input_ids=len(prompt),
    )
    times: list[float] = found[0, len(prompt) :].tolist()
    return times


def _attentions(
    loaded: LoadedWhisper, encoded: torch.Tensor, read: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return attentions by layer; those of layers that align nothing are dropped as too large."""
    model = loaded.model
    layers = model.model.decoder.layers
    found = [torch.empty(1, 1, read.shape[1], 0) for _ in layers]

    def record(number: int) -> Any:
        def hook(_module: Any, _inputs: Any, outputs: Any) -> None:
            found[number] = outputs[1].float()

        return hook

    wanted = sorted({layer for layer, _ in loaded.decoding.alignment_heads})
    hooks = [layers[i].encoder_attn.register_forward_hook(record(i)) for i in wanted]
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        model.model.decoder(input_ids=read, encoder_hidden_states=encoded[None], use_cache=False)
    finally:
        model.set_attn_implementation(usual)
        for hook in hooks:
            hook.remove()
    return tuple(found)


def words_of(
    tokenizer: Any, tokens: list[int], spans: list[tuple[float, float]], language: str | None
) -> tuple[Word, ...]:
    """Return the words of text ``tokens``, each of which has its span of time.

    In languages without spaces, words are characters.
    """
    if not tokens:
        return ()
    name = LANGUAGES.get(language or "en", "english")
    texts, _, places = _combine_tokens_into_words(tokenizer, tokens, name)
    return tuple(
        Word(spans[place[0]][0], spans[place[-1]][1], text.strip())
        for text, place in zip(texts, places, strict=True)
        if text.strip()
    )
