"""The batched sampler against a plain one that treats one row in pure Python."""

import math
from typing import Any

import pytest
import torch

from workers.engines.text.sample import Choice
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import Sampling

VOCAB = 97


def row(seed: int = 1, prompt: tuple[int, ...] = (3, 4), **settings: Any) -> SamplingParams:
    return SamplingParams(Sampling(max_tokens=1, **settings), seed, prompt, VOCAB)


def sample(values: torch.Tensor, rows: list[SamplingParams], positions: list[int]) -> list[Choice]:
    """Sample one step of requests that are new in it."""
    return Sampler().sample(values, rows, positions)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCAB, generator=generator) * 3


def reference_support(values: list[float], settings: dict[str, Any]) -> dict[int, float]:
    """Return the tokens that may be drawn with their probabilities, by the definitions."""
    scaled = [value / settings.get("temperature", 1.0) for value in values]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    order = order[: settings.get("top_k") or len(order)]
    weights = {token: math.exp(scaled[token] - scaled[order[0]]) for token in order}
    total = sum(weights.values())
    kept: dict[int, float] = {}
    reached = 0.0
    for token in order:
        if reached >= settings.get("top_p", 1.0):
            break
        reached += weights[token] / total
        if weights[token] >= settings.get("min_p", 0.0):
            kept[token] = weights[token]
    whole = sum(kept.values())
    return {token: weight / whole for token, weight in kept.items()}


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.6},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 1000, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 1.0, "top_p": 0.0001},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sampling_follows_the_reference_distribution(settings: dict[str, Any]) -> None:
    draws = 4000
    one = logits(1)
    expected = reference_support(one[0].tolist(), settings)
    counts = dict.fromkeys(range(VOCAB), 0)
    for start in range(0, draws, 500):
        rows = [row(seed, **settings) for seed in range(start, start + 500)]
        for choice in sample(one.expand(500, -1), rows, [0] * 500):
            counts[choice.token] += 1
    assert {token for token, count in counts.items() if count} <= set(expected)
    for token, probability in expected.items():
        spread = 5 * math.sqrt(draws * probability * (1 - probability)) + 1e-6
        assert abs(counts[token] - draws * probability) <= spread


def test_sampling_of_a_row_depends_on_nothing_beside_it() -> None:
    many = logits(len(SETTINGS), seed=2)
    for position in range(5):
        rows = [row(seed, **settings) for seed, settings in enumerate(SETTINGS)]
        together = sample(many, rows, [position] * len(rows))
        alone = [
            sample(many[i : i + 1], [row(i, **settings)], [position])[0]
            for i, settings in enumerate(SETTINGS)
        ]
        assert together == alone


def test_sampling_depends_on_seed_and_position() -> None:
    flat = torch.zeros(1, VOCAB)
    by_position = {sample(flat, [row(5, temperature=1.0)], [p])[0].token for p in range(40)}
    by_seed = {sample(flat, [row(s, temperature=1.0)], [0])[0].token for s in range(40)}
    assert min(len(by_position), len(by_seed)) > 20


def test_greedy_is_the_arg_max_with_ties_to_the_lowest_id_also_beside_random_rows() -> None:
    tied = torch.zeros(3, VOCAB)
    tied[:, [11, 40]] = 2.0
    assert [c.token for c in sample(tied, [row(), row(), row()], [0] * 3)] == [11] * 3
    mixed = sample(tied, [row(), row(temperature=1.0), row(logprobs=0)], [0] * 3)
    assert (mixed[0].token, mixed[2].token) == (11, 11)


def test_penalties_count_prompt_and_output_as_the_library_does() -> None:
    values = logits(1, seed=3)
    settings: dict[str, Any] = {
        "repetition_penalty": 1.7,
        "presence_penalty": 0.9,
        "frequency_penalty": 0.6,
    }
    one = row(**settings)
    plain = values[0].tolist()
    said: list[int] = []
    sampler = Sampler()
    for position in range(30):
        adjusted = list(plain)
        for token in {3, 4, *said}:
            adjusted[token] = plain[token] / 1.7 if plain[token] > 0 else plain[token] * 1.7
        for token in set(said):
            adjusted[token] -= 0.9 + 0.6 * said.count(token)
        best = max(range(VOCAB), key=lambda token: (adjusted[token], -token))
        token = sampler.sample(values, [one], [position])[0].token
        assert token == best
        said.append(token)
    assert len(set(said)) > 5


def test_penalties_are_held_for_rows_that_ask_until_they_are_released() -> None:
    sampler = Sampler()
    plain, first, second = row(), row(presence_penalty=0.5), row(repetition_penalty=1.2)
    for position in range(2):
        sampler.sample(logits(3), [plain, first, second], [position] * 3)
    assert sampler.penalties.used == 2
    sampler.release(plain)
    sampler.release(first)
    assert sampler.penalties.used == 1
    sampler.release(second)
    assert (sampler.penalties.used, sampler.penalties._counts) == (0, None)


def test_penalties_of_a_released_row_do_not_reach_its_successor() -> None:
    values = logits(1, seed=5)
    settings: dict[str, Any] = {
        "repetition_penalty": 1.7,
        "presence_penalty": 2.0,
        "frequency_penalty": 1.0,
    }
    sampler = Sampler()
    stays, leaves = row(prompt=(1,), **settings), row(prompt=(2,), **settings)
    for position in range(20):
        sampler.sample(values.expand(2, -1), [stays, leaves], [position] * 2)
    sampler.release(leaves)
    newcomer, alone = row(prompt=(9,), **settings), row(prompt=(9,), **settings)
    fresh = Sampler()
    for position in range(20):
        beside = sampler.sample(values.expand(2, -1), [newcomer, stays], [position, 20 + position])
        assert beside[0] == fresh.sample(values, [alone], [position])[0]
    assert sampler.penalties.used == 2


def test_logit_bias_forbids_and_forces() -> None:
    values = logits(1)
    best = int(values.argmax())
    assert sample(values, [row(logit_bias={best: -100.0})], [0])[0].token != best
    assert sample(values, [row(logit_bias={50: 100.0})], [0])[0].token == 50
    forced = row(temperature=1.0, logit_bias={50: 100.0})
    assert sample(values, [forced], [0])[0].token == 50


def test_logprobs_are_the_model_s_own() -> None:
    values = logits(2)
    hot = row(temperature=2.0, logprobs=3, logit_bias={7: 100.0})
    choices = sample(values, [hot, row()], [0, 0])
    expected = torch.log_softmax(values[0], -1)
    found = choices[0].logprobs
    assert found is not None
    assert choices[1].logprobs is None
    assert found.chosen == pytest.approx(expected[7].item(), abs=1e-5)
    best = expected.topk(3)
    assert [token for token, _ in found.top] == best.indices.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_of_tokens_that_a_model_rules_out_are_numbers() -> None:
    values = logits(1)
    values[0, 3:] = float("-inf")
    found = sample(values, [row(logprobs=5, logit_bias={2: 100.0})], [0])[0].logprobs
    assert found is not None
    assert [logprob for _, logprob in found.top[3:]] == [-9999.0] * 2
    assert found.top[2][1] > -9999.0


def test_nan_in_a_row_fails_it_alone() -> None:
    values = logits(3)
    values[1, 5] = float("nan")
    rows = [row(), row(temperature=1.0), row(temperature=1.0)]
    tokens = [choice.token for choice in sample(values, rows, [0] * 3)]
    assert tokens[1] == -1
    assert min(tokens[0], tokens[2]) >= 0


def test_top_k_keeps_equal_logits_together_where_top_p_follows() -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 5, "top_p": 0.9}
    rows = [row(seed, **settings) for seed in range(400)]
    tokens = {choice.token for choice in sample(torch.zeros(400, VOCAB), rows, [0] * 400)}
    assert len(tokens) > 80
    assert min(tokens) >= 0


@pytest.mark.parametrize("vocab", [200, 3000, 9000])
def test_top_p_of_any_size_is_exact(vocab: int) -> None:
    values = torch.linspace(0.0, 1.0, vocab).unsqueeze(0)  # nearly flat, so the nucleus is wide
    expected = reference_support(values[0].tolist(), {"top_p": 0.7})
    settings = Sampling(max_tokens=1, temperature=1.0, top_p=0.7)
    pending = Sampler().enqueue(values, [SamplingParams(settings, 1, (), vocab)], [0])
    assert pending.draw is not None
    least, undecided = pending.draw.truncation.thresholds(pending.draw.scaled, vocab)
    kept = int((values - values.max() >= least).sum())
    assert undecided is None
    assert abs(kept - len(expected)) <= 1
