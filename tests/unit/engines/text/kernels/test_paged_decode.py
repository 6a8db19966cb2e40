"""The kernel of decode rows over the paged cache, in Triton's interpreter, beside plain torch."""

import os

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)
pytest.importorskip("triton", reason="needs Triton: pip install '.[kernels]'")
_SIZE = 16  #: tokens of a block


class Case:
    """Holds rows of some lengths in a cache whose blocks lie in any order; block 0 is all NaN."""

    def __init__(
        self,
        lengths: list[int],
        *,
        heads: int,
        kv_heads: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        random = torch.Generator().manual_seed(sum(lengths) + heads)
        blocks = [-(-length // _SIZE) for length in lengths]
        order = (torch.randperm(sum(blocks), generator=random) + 1).tolist()
        self.width = kv_heads * 2 * dim
        self.pages = torch.randn((sum(blocks) + 1) * _SIZE, self.width, generator=random).to(dtype)
        self.pages[:_SIZE] = float("nan")
        self.table = torch.zeros(len(lengths), max(1, *blocks), dtype=torch.int32)
        for row, count in enumerate(blocks):
            mine, order = order[:count], order[count:]
            self.table[row, :count] = torch.tensor(mine, dtype=torch.int32)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        # As in a joined projection: the queries are the beginning of wider rows.
        joined = torch.randn(len(lengths), heads * dim + self.width, generator=random)
        self.query = joined.to(dtype)[:, : heads * dim].view(len(lengths), heads, dim)
        self.kv_heads, self.dim = kv_heads, dim

    def run(
        self,
        window: int | None = None,
        softcap: float | None = None,
        rows: slice = slice(None),
        longest: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        from workers.engines.text.kernels.paged_decode import paged_decode

        return paged_decode(
            self.query[rows],
            self.pages,
            self.table[rows],
            self.lengths[rows],
            longest=longest or int(self.lengths.max()),
            block_size=_SIZE,
            kv_heads=self.kv_heads,
            value_dim=self.dim,
            window=window,
            scaling=self.dim**-0.5,
            softcap=softcap,
            sinks=sinks,
        )

    def expected(
        self,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        found = []
        for row, length in enumerate(self.lengths.tolist()):
            places = torch.arange(max(0, length - (window or length)), length)
            at = self.table[row].long()[places // _SIZE] * _SIZE + places % _SIZE
            cached = self.pages[at].float().view(len(places), 2, self.kv_heads, self.dim)
            group = self.query.shape[1] // self.kv_heads
            keys, values = (each.repeat_interleave(group, 1) for each in cached.unbind(1))
            scores = torch.einsum("hd,nhd->hn", self.query[row].float(), keys) * self.dim**-0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks[:, None].float()), dim=1)
            weights = scores.softmax(-1)[:, : len(places)]
            found.append(torch.einsum("hn,nhd->hd", weights, values).flatten())
        return torch.stack(found)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 16), (6, 2, 80), (1, 1, 512)])
def test_decode_attention_is_that_of_the_formula(heads: int, kv_heads: int, dim: int) -> None:
    case = Case([1, 17, 290], heads=heads, kv_heads=kv_heads, dim=dim)
    assert (case.run() - case.expected()).abs().max() < 5e-6


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dim", [16, 80, 128, 256, 512])
def test_keys_and_values_that_are_read_together_fit_into_a_small_card(dim: int, size: int) -> None:
    """Compiled for 8.6 with twice 32 KiB of both, programs take 84 to 97 of the 99 KiB there."""
    from workers.engines.text.kernels.paged_decode import positions_at_once

    positions = positions_at_once(dim, size)
    assert positions in (16, 32, 64)
    assert 2 * positions * max(16, 1 << (dim - 1).bit_length()) * size <= 64 << 10


@pytest.mark.parametrize(("window", "softcap"), [(8, None), (None, 2.0), (260, 5.0)])
def test_decode_attention_looks_back_as_far_as_its_window_and_caps_scores(
    window: int | None, softcap: float | None
) -> None:
    case = Case([3, 270], heads=2, kv_heads=1, dim=32)
    assert (case.run(window, softcap) - case.expected(window, softcap)).abs().max() < 5e-6


@pytest.mark.parametrize("window", [None, 8])
def test_decode_attention_has_sinks(window: int | None) -> None:
    """Rows of one part and of several; a row without tokens has a sink only, which is no value."""
    case = Case([0, 5, 530], heads=4, kv_heads=2, dim=16)
    sinks = torch.tensor([-2.0, 0.0, 3.0, 40.0])
    found = case.run(window, sinks=sinks)
    assert (found[1:] - case.expected(window, sinks=sinks)[1:]).abs().max() < 5e-6
    assert not found[0].any()


def test_decode_attention_in_half_precision_is_near_the_formula() -> None:
    case = Case([5, 70], heads=4, kv_heads=2, dim=64, dtype=torch.float16)
    assert (case.run().float() - case.expected()).abs().max() < 2e-3


def test_decode_attention_reads_pages_of_eight_bits() -> None:
    case = Case([5, 290], heads=4, kv_heads=2, dim=32)
    case.pages = case.pages.to(torch.float8_e4m3fn)
    assert (case.run() - case.expected()).abs().max() < 5e-6


def test_decode_attention_of_a_row_is_the_same_beside_others_bit_for_bit() -> None:
    case = Case([300, 9, 1030], heads=2, kv_heads=1, dim=16)
    together = case.run()
    for row, length in enumerate(case.lengths.tolist()):
        alone = case.run(rows=slice(row, row + 1), longest=length)
        assert torch.equal(alone[0], together[row])


def test_decode_attention_of_a_row_without_tokens_is_zero() -> None:
    case = Case([0, 5], heads=4, kv_heads=2, dim=16)
    assert not case.run()[0].any()
