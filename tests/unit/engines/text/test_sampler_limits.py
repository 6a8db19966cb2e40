"""Settings that rule tokens out, against the library's own processors."""

from typing import Any

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from workers.engines.text.sample import Choice
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import Sampling

VOCAB = 97
IDS = torch.zeros(1, 1, dtype=torch.long)


def row(seed: int = 1, ends: tuple[int, ...] = (), **settings: Any) -> SamplingParams:
    sampling = Sampling(max_tokens=9, **settings)
    return SamplingParams(sampling, seed, (3, 4), VOCAB, ends=frozenset(ends))


def sample(logits: torch.Tensor, rows: list[SamplingParams], position: int = 0) -> list[Choice]:
    return Sampler().sample(logits, rows, [position] * len(rows))


def logits(seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, VOCAB, generator=generator) * spread


def kept(values: torch.Tensor, settings: dict[str, Any]) -> set[int]:
    """Return the tokens that may be drawn: those that stay above -inf, by what is drawn from."""
    pending = Sampler().enqueue(values, [row(**settings)], [0])
    assert pending.draw is not None
    return set(torch.isfinite(pending.draw.noisy[0]).nonzero()[:, 0].tolist())


TYPICAL: list[dict[str, Any]] = [
    {"temperature": 1.0, "typical_p": 0.2},
    {"temperature": 1.0, "typical_p": 0.9},
    {"temperature": 0.6, "typical_p": 0.5},
    {"temperature": 1.0, "typical_p": 0.001},
    {"temperature": 1.3, "top_k": 12, "typical_p": 0.6},
    {"temperature": 1.0, "top_k": 30, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.7},
]


@pytest.mark.parametrize("settings", TYPICAL, ids=str)
def test_typical_p_keeps_what_the_library_keeps(settings: dict[str, Any]) -> None:
    for seed in range(6):
        values = logits(seed, 1.0 + seed)
        expected = values / settings["temperature"]
        for name, warper in (
            ("top_k", TopKLogitsWarper),
            ("top_p", TopPLogitsWarper),
            ("min_p", MinPLogitsWarper),
            ("typical_p", TypicalLogitsWarper),
        ):
            if name in settings:
                expected = warper(settings[name])(IDS, expected)
        assert kept(values, settings) == set(expected[0].isfinite().nonzero()[:, 0].tolist())


def test_typical_p_of_a_row_depends_on_nothing_beside_it() -> None:
    several = [*TYPICAL, {"temperature": 1.0}, {}, {"temperature": 1.0, "top_p": 0.5}]
    values = torch.cat([logits(number, 2.0) for number in range(len(several))])
    together = sample(values, [row(n, **each) for n, each in enumerate(several)])
    alone = [sample(values[n : n + 1], [row(n, **each)])[0] for n, each in enumerate(several)]
    assert together == alone


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}])
def test_min_tokens_rules_ends_out_as_the_library_does(settings: dict[str, Any]) -> None:
    values = logits(3, 1.0)
    values[0, [5, 9]] += 20.0
    for position in range(5):
        ids = torch.zeros(1, 2 + position, dtype=torch.long)
        processor = MinNewTokensLengthLogitsProcessor(2, 3, [5, 9])
        allowed = processor(ids, values)[0].isfinite()
        rows = [row(seed, (5, 9, 500), min_tokens=3, **settings) for seed in range(20)]
        tokens = {each.token for each in sample(values.expand(20, -1), rows, position)}
        assert all(allowed[token] for token in tokens)
        assert bool(tokens & {5, 9}) == (position >= 3)


def test_min_tokens_of_a_row_changes_no_other() -> None:
    values = logits(4, 1.0)
    best = int(values.argmax())
    barred, plain = sample(values.expand(2, -1), [row(1, (best,), min_tokens=2), row(2, (best,))])
    assert plain.token == best != barred.token


def test_seed_of_several_choices_gives_each_its_own_noise() -> None:
    sampling = Sampling(max_tokens=1, temperature=1.0)
    flat = torch.zeros(40, VOCAB)
    rows = [SamplingParams(sampling, 5, (), VOCAB, choice=choice) for choice in range(40)]
    tokens = [each.token for each in Sampler().sample(flat, rows, [0] * 40)]
    assert len(set(tokens)) > 20
    first = Sampler().sample(flat[:1], [SamplingParams(sampling, 5, (), VOCAB)], [0])
    assert tokens[0] == first[0].token
