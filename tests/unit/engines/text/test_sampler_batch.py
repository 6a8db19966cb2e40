"""Sampling for all rows at once: the tokens of the row-by-row sampler, in few operations."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from workers.engines.text.gumbel import gumbel_noise
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams, upload
from workers.protocol import Sampling

NEVER = float("-inf")
MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 40},
    {"temperature": 1.0, "top_k": 700, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.99},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 1.0, "top_k": 4500, "top_p": 0.98, "min_p": 0.001},
    {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.8, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 1.1, "frequency_penalty": -0.8, "logit_bias": {7: 9.0, 100: -100.0}},
    {"logit_bias": {42: 8.5}},
    {"temperature": 0.8, "top_p": 0.5, "logprobs": 3},
]
#: of the sampler that treated one row after the other, at 3b52f0c: a list for each position
RECORDED = [
    [1657, 4862, 1541, 3771, 4290, 3432, 3122, 201, 678, 188, 720, 2131, 42, 4604],
    [1658, 2040, 2307, 3227, 230, 994, 1307, 4713, 2284, 4285, 1387, 3612, 1411, 4593],
    [59, 872, 3966, 1919, 3290, 2147, 1042, 1398, 1079, 3582, 553, 2935, 20, 3451],
    [1088, 1624, 3696, 113, 3899, 3150, 2239, 3406, 3041, 2136, 629, 7, 1861, 1244],
    [2004, 4630, 2548, 3756, 2787, 3873, 2086, 4285, 161, 3172, 2205, 7, 2978, 419],
    [3880, 4276, 538, 2314, 1113, 1288, 1899, 1051, 4012, 1214, 54, 7, 273, 1293],
]


def params(index: int, one: dict[str, Any], vocab: int) -> SamplingParams:
    sampling = Sampling(max_tokens=1, **one)
    return SamplingParams(sampling, 100 + index, (3, 4, 5, 5, 900 % vocab), vocab)


def test_seeds_give_the_tokens_that_they_always_gave() -> None:
    rows = [params(index, one, 5000) for index, one in enumerate(MIXED)]
    generator = torch.Generator().manual_seed(11)
    sampler = Sampler()
    for position, expected in enumerate(RECORDED):
        logits = torch.randn(len(rows), 5000, generator=generator) * 3
        choices = sampler.sample(logits, rows, [position] * len(rows))
        assert [choice.token for choice in choices] == expected


# ---- against the definitions, row by row -----------------------------------------------------


class Reference:
    """Computes one request alone and by the plainest means."""

    def __init__(self, one: dict[str, Any], row: SamplingParams, vocab: int) -> None:
        self._one = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "top_k": None, **one}
        self._row = row
        self._counts = torch.zeros(vocab)
        self._seen = torch.zeros(vocab, dtype=torch.bool)
        self._seen[list(row.prompt)] = True

    def token(self, logits: torch.Tensor, position: int) -> int:
        adjusted = self._adjusted(logits)
        if self._one["temperature"] == 0.0:
            token = int(adjusted.argmax())
        else:
            scaled = (adjusted - adjusted.max()) / self._one["temperature"]
            keys = torch.tensor([self._row.keys(position)], dtype=torch.int32)
            noisy = scaled + gumbel_noise(keys, len(logits))[0]
            token = int(noisy.masked_fill(scaled < self.least(scaled), NEVER).argmax())
        self._counts[token] += 1
        self._seen[token] = True
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        adjusted = logits.clone()
        repetition = self._one.get("repetition_penalty", 1.0)
        weaker = torch.where(adjusted > 0, adjusted / repetition, adjusted * repetition)
        adjusted = torch.where(self._seen, weaker, adjusted)
        adjusted -= self._counts * self._one.get("frequency_penalty", 0.0)
        adjusted -= self._counts.clamp(max=1.0) * self._one.get("presence_penalty", 0.0)
        for token, bias in self._one.get("logit_bias", {}).items():
            adjusted[token] += bias
        return adjusted

    def least(self, scaled: torch.Tensor) -> float:
        """Return the smallest value that stays, by a sort of all."""
        order = scaled.sort(descending=True).values
        least = NEVER
        top_k = self._one["top_k"]
        if top_k and top_k < len(order):
            least = order[top_k - 1].item()
        kept = scaled.masked_fill(scaled < least, NEVER)
        if self._one["top_p"] < 1.0:
            sums = kept.log_softmax(-1).exp()[kept.argsort(descending=True)].cumsum(-1)
            last = min(int((sums < self._one["top_p"]).sum()), len(order) - 1)
            least = max(least, order[last].item())
        if self._one["min_p"] > 0.0:
            least = max(least, torch.tensor(self._one["min_p"]).log().item())
        return least


VOCAB = 1200
some = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "top_k": st.sampled_from([1, 5, 64, 65, 300, VOCAB - 1, VOCAB, 10**9]),
        "top_p": st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.999]),
        "min_p": st.sampled_from([0.01, 0.2, 1.0]),
        "repetition_penalty": st.sampled_from([0.8, 1.5]),
        "presence_penalty": st.sampled_from([-0.5, 0.7]),
        "frequency_penalty": st.sampled_from([-0.2, 1.1]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.0, 4.0]), max_size=4
        ),
        "logprobs": st.sampled_from([0, 1, 5, 20]),
    },
)
#: flat: the nucleus is larger than the candidates; coarse: many equal logits, as in bfloat16
shapes = st.sampled_from(["peaked", "usual", "flat", "coarse", "equal"])


def drawn_logits(shape: str, rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    if shape == "coarse":
        return (values * 2).round()
    return values * {"peaked": 12.0, "usual": 3.0, "flat": 0.05, "equal": 0.0}[shape]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(some, shapes), min_size=1, max_size=24), st.integers(0, 1000))
def test_sampling_of_mixed_rows_is_that_of_each_by_itself(
    wanted: list[tuple[dict[str, Any], str]], seed: int
) -> None:
    rows = [params(index, one, VOCAB) for index, (one, _) in enumerate(wanted)]
    references = [Reference(one, row, VOCAB) for (one, _), row in zip(wanted, rows, strict=True)]
    sampler = Sampler()
    for position in range(3):
        logits = torch.cat(
            [
                drawn_logits(shape, 1, seed + 50 * n + position)
                for n, (_, shape) in enumerate(wanted)
            ]
        )
        choices = sampler.sample(logits, rows, [position] * len(rows))
        for index, (choice, reference) in enumerate(zip(choices, references, strict=True)):
            assert choice.token == reference.token(logits[index], position)
            _check_logprobs(choice.logprobs, rows[index].logprobs, logits[index], choice.token)


def _check_logprobs(found: Any, count: int | None, logits: torch.Tensor, token: int) -> None:
    if count is None:
        assert found is None
        return
    expected = logits.log_softmax(-1)
    assert found.chosen == pytest.approx(expected[token].item(), abs=1e-5)
    best = expected.topk(count).values.tolist()
    assert [value for _, value in found.top] == pytest.approx(best, abs=1e-5)
    assert [expected[name].item() for name, _ in found.top] == pytest.approx(best, abs=1e-5)


def test_top_p_beyond_the_first_candidates_is_exact_beside_small_ones() -> None:
    vocab = 9000
    wide = {"temperature": 1.0, "top_p": 0.9}
    rows = [params(index, wide, vocab) for index in range(5)]
    references = [Reference(wide, row, vocab) for row in rows]
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.01, 20.0, 1.0, 0.2, 6.0])[:, None]
    sampler = Sampler()
    for position in range(8):
        logits = torch.randn(5, vocab, generator=generator) * spread
        choices = sampler.sample(logits, rows, [position] * 5)
        expected = [each.token(logits[n], position) for n, each in enumerate(references)]
        assert [choice.token for choice in choices] == expected


# ---- operations ------------------------------------------------------------------------------

#: What only looks at memory in another way: no kernel on a card.
VIEWS = {"view", "unsqueeze", "squeeze", "expand", "slice", "select", "split_with_sizes"}
VIEWS |= {"detach", "_unsafe_view", "t", "alias", "lift_fresh", "as_strided", "empty"}


class Operations(TorchDispatchMode):
    """Counts what is computed, by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operations(rows: int, **one: Any) -> Counter[str]:
    """Return the torch operations of a step in which no request is new."""
    requests = [params(index, one, 512) for index in range(rows)]
    logits = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)) * 6
    sampler = Sampler()
    sampler.sample(logits, requests, [0] * rows)
    with Operations() as found:
        sampler.sample(logits, requests, [1] * rows)
    counts: Counter[str] = found.counts
    return counts


@pytest.mark.parametrize(
    "one",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.95},
        {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "min_p": 0.01},
        {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1},
        {"temperature": 1.0, "presence_penalty": 1.1, "logit_bias": {1: 2.0, 5: 3.0}},
        {"logprobs": 5},
    ],
    ids=str,
)
def test_sampling_takes_the_same_operations_for_one_row_and_for_many(one: dict[str, Any]) -> None:
    many = operations(64, **one)
    assert many == operations(2, **one)
    # Reading one number, or picking by a mask, makes the host wait for the device.
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"} & many.keys()


def test_sampling_with_penalties_takes_few_operations() -> None:
    found = operations(64, temperature=1.0, top_p=0.95, repetition_penalty=1.1)
    assert found.total() < 84, found


def test_upload_keeps_names_kinds_and_values() -> None:
    sent = upload(
        torch.device("cpu"),
        floats={"half": [0.5, -1.25], "none": []},
        ints={"keys": [-(2**31), 2**31 - 1], "one": [7]},
    )
    assert {name: column.tolist() for name, column in sent.items()} == {
        "half": [0.5, -1.25],
        "none": [],
        "keys": [-(2**31), 2**31 - 1],
        "one": [7],
    }
    assert (sent["half"].dtype, sent["keys"].dtype) == (torch.float32, torch.int64)
