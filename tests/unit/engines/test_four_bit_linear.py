"""Layers of 4 bits compute what their numbers, zeros and scales say."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.engines import four_bit_linear
from workers.engines.four_bit_linear import FourBitLinear, can_join, join_four_bit
from workers.engines.packed_linear import pack

WIDTH, GROUP = 96, 32


def made(
    outs: int, *, seed: int = 1, bias: bool = False, width: int = WIDTH, group: int = GROUP
) -> tuple[FourBitLinear, Tensor]:
    """Return a layer, and the weight that it has by its formula."""
    torch.manual_seed(seed)
    numbers = torch.randint(0, 16, (outs, width // group, group), dtype=torch.uint8)
    zero = torch.randint(0, 17, (width // group, outs), dtype=torch.uint8)
    scale = (torch.rand(width // group, outs) / 20 + 0.01).half()
    low, high = numbers.chunk(2, -1)
    extra = torch.randn(outs) if bias else None
    layer = FourBitLinear((low | high << 4).flatten(1), scale, zero, extra)
    shifted = numbers.float() - zero.t()[:, :, None].float()
    return layer, (shifted * scale.t()[:, :, None].float()).flatten(1)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_four_bit_layer_computes_its_formula(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bit_linear, "_CHUNK", 7 * WIDTH)  # some outputs at a time
    layer, weight = made(40, bias=bias)
    x = torch.randn(2, rows, WIDTH)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, layer.bias))


@pytest.mark.parametrize("rows", [1, 9])
def test_four_bit_layer_on_a_cpu_keeps_its_precision_in_bfloat16(rows: int) -> None:
    layer, weight = made(128)
    held = layer.stored.nbytes
    layer.pack(torch.bfloat16)
    assert layer.packed
    assert layer.stored.nbytes == held
    x = torch.randn(rows, WIDTH).bfloat16()
    exact = x.float() @ weight.t()
    off = (layer(x).float() - exact).square().mean().sqrt()
    rounded = (x @ weight.bfloat16().t()).float()
    assert off < 3 * (rounded - exact).square().mean().sqrt()


@pytest.mark.parametrize(("dtype", "outs"), [(torch.float32, 128), (torch.bfloat16, 40)])
def test_four_bit_layer_that_the_cpus_product_does_not_take_stays_as_it_is(
    dtype: torch.dtype, outs: int
) -> None:
    layer, _ = made(outs)
    layer.pack(dtype)
    assert not layer.packed


@pytest.mark.parametrize("packed", [False, True])
def test_four_bit_layers_that_share_an_input_are_joined_in_the_same_bytes(packed: bool) -> None:
    parts = [made(outs, seed=seed, bias=True)[0] for seed, outs in enumerate((128, 64, 64))]
    dtype = torch.bfloat16 if packed else torch.float32
    for part in parts:
        part.pack(dtype)
        assert part.packed is packed
        assert part.bias is not None
        part.bias.data = part.bias.to(dtype)
    x = torch.randn(3, WIDTH).to(dtype)
    expected = torch.cat([part(x) for part in parts], -1)
    joined = pack(*parts)
    assert isinstance(joined, FourBitLinear)
    torch.testing.assert_close(joined(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([part(x) for part in parts], -1), expected)
    held = joined.stored.untyped_storage().data_ptr()
    assert {part.stored.untyped_storage().data_ptr() for part in parts} == {held}


def test_four_bit_layers_that_differ_are_not_joined() -> None:
    one, other = made(32)[0], made(32)[0]
    assert can_join([one, other])
    assert not can_join([one, made(32, group=48)[0]])
    assert not can_join([one, made(32, bias=True)[0]])
    other.order = torch.randperm(WIDTH)
    assert not can_join([one, other])
    assert can_join([other, join_four_bit([other])])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 16), (torch.bfloat16, 64)])
def test_four_bit_kernel_gets_no_more_rows_than_a_small_card_has_room_for(
    dtype: torch.dtype, most: int
) -> None:
    layer, _ = made(32)
    layer._has_kernel = True  # as on a card
    assert layer._is_for_kernel(torch.zeros(most, WIDTH, dtype=dtype))
    assert not layer._is_for_kernel(torch.zeros(most + 1, WIDTH, dtype=dtype))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "outs", "width", "group"),
    [(1, 40, 96, 32), (16, 33, 128, 128), (5, 16, 192, 96), (64, 24, 256, 256), (17, 16, 64, 64)],
)
def test_four_bit_kernel_computes_what_torch_does(
    dtype: torch.dtype, rows: int, outs: int, width: int, group: int
) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install '.[kernels]'")
    from workers.engines.text.kernels.four_bit_product import four_bit_product

    layer, weight = made(outs + 8, width=width, group=group)
    layer, weight = layer.rows(4, outs + 4), weight[4 : outs + 4]  # a part of a joined one
    x = torch.randn(rows, width).to(dtype)
    expected = (x.float() @ weight.t()).to(dtype)
    bound = {torch.float32: 1e-4, torch.float16: 2e-2}[dtype]
    found = four_bit_product(x, layer.stored, layer.scale, layer.zero)
    torch.testing.assert_close(found, expected, atol=bound, rtol=1e-2)
