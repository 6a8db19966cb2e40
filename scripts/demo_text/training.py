"""Trains the model of ``demo-text``: the same numbers each time, on one thread of a CPU."""

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.demo_text.conversations import Topic, conversation

STEPS = 1100
_BATCH = 16  #: conversations a step
_TURNS = (1, 2, 1, 3)  #: of the conversations of a step, so that all are about as long
_LONGEST = 320  #: tokens of a conversation
_RATE, _WARM_UP = 4e-3, 50
_DECAY = 0.02
_KEPT_EVERY = 50  #: steps
_IGNORED = -100
_SEED = 20261127


def train(known: list[Topic], tokenizer: Tokenizer, config: dict[str, Any], work: Path) -> Any:
    """Return the trained model. ``work`` keeps how far it is, so that another run goes on."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(_SEED)
    model = LlamaForCausalLM(LlamaConfig(**config))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_RATE, weight_decay=_DECAY, betas=(0.9, 0.98)
    )
    kept = work / "kept.pt"
    first = _resume(kept, model, optimizer)
    model.train()
    for step in range(first, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step)
        tokens, labels = _batch(known, tokenizer, step)
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % _KEPT_EVERY == 0:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.4f}", flush=True)  # noqa: T201  its progress, on a terminal
            _keep(kept, step + 1, model, optimizer)
    return model


def _rate(step: int) -> float:
    """Return the rate of learning: up quickly, then down along a cosine."""
    if step < _WARM_UP:
        return _RATE * (step + 1) / _WARM_UP
    way = (step - _WARM_UP) / (STEPS - _WARM_UP)
    return _RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * way)))


def _batch(known: list[Topic], tokenizer: Tokenizer, step: int) -> Any:
    """Return the tokens of a step's conversations, and those of them that are learned."""
    turns = _TURNS[step % len(_TURNS)]
    rows = [_row(known, tokenizer, step * _BATCH + each, turns) for each in range(_BATCH)]
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.zeros(_BATCH, longest, dtype=torch.long)
    labels = torch.full((_BATCH, longest), _IGNORED)
    for place, (said, learned) in enumerate(rows):
        tokens[place, : len(said)] = torch.tensor(said)
        labels[place, : len(said)] = torch.tensor(learned)
    return tokens, labels


def _row(
    known: list[Topic], tokenizer: Tokenizer, number: int, turns: int
) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    labels: list[int] = []
    for piece in conversation(known, number, turns):
        ids = tokenizer.encode(piece.text).ids
        tokens += ids
        labels += ids if piece.learned else [_IGNORED] * len(ids)
    return tokens[:_LONGEST], labels[:_LONGEST]


def _keep(path: Path, step: int, model: Any, optimizer: Any) -> None:
    part = path.with_suffix(".part")
    torch.save({"step": step, "model": model.state_dict(), "by": optimizer.state_dict()}, part)
    part.replace(path)


def _resume(path: Path, model: Any, optimizer: Any) -> int:
    if not path.exists():
        return 0
    kept = torch.load(path, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["by"])
    return int(kept["step"])
