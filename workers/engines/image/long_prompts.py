"""Prompts longer than a CLIP encoder reads are encoded in chunks, joined one after another.

Each chunk is encoded by the pipeline itself, as a prompt of its own; the denoiser attends to all
of them. What stands for the whole prompt (pooled embeddings) is that of the first chunk.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

MOST_CHUNKS = 16  #: the denoiser's time and memory grow with them
_ENCODERS = ("text_encoder", "text_encoder_2")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_MARKS = 2  #: tokens: the beginning and the end, around each chunk
_WORD = re.compile(r"\s*\S+\s*")


def can_chunk(pipe: Any) -> bool:
    """Return whether a pipeline's denoiser attends to as many chunks as it is given.

    Those do whose only encoders are CLIP's, and whose UNet reads their states directly.
    """
    encoders = [each for name in _ENCODERS if (each := getattr(pipe, name, None)) is not None]
    if getattr(pipe, "unet", None) is None or not hasattr(pipe, "encode_prompt"):
        return False
    return bool(encoders) and all(type(each).__name__ in _CLIP for each in encoders)


def chunks_of(text: str, tokenizers: Sequence[Any], longest: int) -> list[str]:
    """Split a text, between words where that is possible, into what encoders read in one go.

    ``longest``: tokens that they read, their marks included.
    """
    if all(len(each(text).input_ids) <= longest for each in tokenizers):
        return [text]
    room = room_of(longest)
    chunks, taken = [""], 0
    for word in _WORD.findall(text):
        for piece in _pieces(word, tokenizers, room):
            count = _count(piece, tokenizers)
            if taken + count > room:
                chunks.append("")
                taken = 0
            chunks[-1] += piece
            taken += count
    return chunks


def room_of(longest: int) -> int:
    """Return the tokens of the text itself in a chunk."""
    return longest - _MARKS


def attach(pipe: Any, tokenizers: Sequence[Any], longest: int) -> None:
    """Let the pipeline of one call encode prompts of any length."""
    pipe.encode_prompt = _chunked(pipe.encode_prompt, tokenizers, longest)


def _chunked(
    encode: Callable[..., Any], tokenizers: Sequence[Any], longest: int
) -> Callable[..., Any]:
    signature = inspect.signature(encode)

    def encode_chunks(*values: Any, **named: Any) -> Any:
        given = signature.bind(*values, **named)
        split = {
            name: [chunks_of(text, tokenizers, longest) for text in texts]
            for name in ("prompt", "negative_prompt")
            if isinstance(texts := given.arguments.get(name), list)
        }
        count = max((len(chunks) for texts in split.values() for chunks in texts), default=1)
        if count == 1:
            return encode(*values, **named)
        parts = []
        for number in range(count):
            for name, texts in split.items():
                given.arguments[name] = [
                    chunks[number] if number < len(chunks) else "" for chunks in texts
                ]
            parts.append(encode(*given.args, **given.kwargs))
        return _joined(parts)

    return encode_chunks


def _joined(parts: list[Any]) -> tuple[Any, ...]:
    """Join the states of all chunks; of what is pooled, take that of the first."""
    return tuple(
        torch.cat(each, dim=1)
        if isinstance(each[0], torch.Tensor) and each[0].ndim == 3
        else each[0]
        for each in zip(*parts, strict=True)
    )


def _pieces(word: str, tokenizers: Sequence[Any], room: int) -> list[str]:
    """Return a word, in halves of halves if it is longer than a chunk."""
    if len(word) == 1 or _count(word, tokenizers) <= room:
        return [word]
    half = len(word) // 2
    halves = (word[:half], word[half:])
    return [piece for part in halves for piece in _pieces(part, tokenizers, room)]


def _count(text: str, tokenizers: Sequence[Any]) -> int:
    return max(len(each(text, add_special_tokens=False).input_ids) for each in tokenizers)
