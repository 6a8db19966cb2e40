"""Layers of 8 bits compute what their rounded weights say, and what torchao's own compute."""

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.engines.eight_bit_linear import EightBitLinear, join_eight_bit, take_over
from workers.engines.packed_linear import pack
from workers.engines.text.quantized import eight_bits

WIDTH, OUTS = 96, 40
FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_layer_computes_what_rounded_weights_do(
    name: str, bias: bool, rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    stored, scale = eight_bits(torch.randn(OUTS, WIDTH), FORMATS[name])
    extra = torch.randn(OUTS).to(dtype) if bias else None
    layer = EightBitLinear(stored, scale, extra)
    x = torch.randn(2, rows, WIDTH).to(dtype)
    found = layer(x)
    expected = functional.linear(x.float(), layer.weight, None if extra is None else extra.float())
    assert found.dtype is dtype
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found.float(), expected, atol=bound, rtol=2e-2)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 60])
def test_eight_bit_layer_stays_in_the_range_of_float16(name: str, rows: int) -> None:
    """Check sums that are hundreds of times as large before they are scaled."""
    stored, scale = eight_bits(torch.full((OUTS, 1024), 0.25), FORMATS[name])
    found = EightBitLinear(stored, scale, None)(torch.full((rows, 1024), 4.0).half())
    torch.testing.assert_close(found, torch.full((rows, OUTS), 1024.0).half(), atol=0, rtol=0.01)


@pytest.mark.parametrize("name", FORMATS)
def test_eight_bit_rounding_keeps_within_half_a_step(name: str) -> None:
    torch.manual_seed(4)
    weight = torch.randn(OUTS, WIDTH) * torch.logspace(-6, 3, OUTS)[:, None]
    weight[3] = 0
    stored, scale = eight_bits(weight, FORMATS[name])
    off = (stored.float() * scale[:, None] - weight).abs()
    step = scale[:, None] if name == "int8" else weight.abs() / 16 + scale[:, None] * 2**-9
    assert (off <= step * 1.01).all()
    assert not stored[3].float().any()


@pytest.mark.parametrize("name", FORMATS)
def test_eight_bit_layer_takes_the_place_of_torchaos(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao: Any = pytest.importorskip("torchao.quantization")
        kinds = {"int8": torchao.Int8WeightOnlyConfig, "fp8": torchao.Float8WeightOnlyConfig}
        model = nn.Sequential(nn.Linear(WIDTH, OUTS))
        torchao.quantize_(model, kinds[name]())
    x = torch.randn(5, WIDTH)
    expected = model(x)
    take_over(model)
    assert isinstance(model[0], EightBitLinear)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def made(seed: int, outs: int) -> EightBitLinear:
    torch.manual_seed(seed)
    stored = torch.randint(-127, 128, (outs, WIDTH), dtype=torch.int8)
    return EightBitLinear(stored, torch.rand(outs) / 100, torch.randn(outs))


def test_eight_bit_layers_that_share_an_input_are_joined_in_the_same_bytes() -> None:
    parts = [made(1, 24), made(2, 8), made(3, 8)]
    x = torch.randn(3, WIDTH)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    joined = pack(*parts)
    assert isinstance(joined, EightBitLinear)
    torch.testing.assert_close(joined(x), expected)
    torch.testing.assert_close(torch.cat([part(x) for part in parts], dim=-1), expected)
    held = joined.stored.untyped_storage().data_ptr()
    assert {part.stored.untyped_storage().data_ptr() for part in parts} == {held}


def test_eight_bit_layers_of_which_some_have_a_bias_are_not_joined() -> None:
    without = made(1, 8)
    without.bias = None
    with pytest.raises(ValueError, match="bias"):
        join_eight_bit([made(2, 8), without])


def test_eight_bit_layer_leaves_others_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, OUTS))
    plain = model[0]
    take_over(model)
    assert model[0] is plain


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "outs", "width"), [(1, 40, 96), (16, 33, 200), (5, 16, 128)])
def test_eight_bit_kernel_computes_what_torch_does(
    dtype: torch.dtype, rows: int, outs: int, width: int
) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install '.[kernels]'")
    from workers.engines.text.kernels.eight_bit_product import eight_bit_product

    torch.manual_seed(rows)
    stored = torch.randint(-127, 128, (outs, width), dtype=torch.int8)
    scale = torch.rand(outs) / 100
    x = torch.randn(rows, width).to(dtype)
    expected: Tensor = ((x.float() @ stored.float().T) * scale).to(dtype)
    bound = {torch.float32: 1e-4, torch.float16: 2e-2}[dtype]
    torch.testing.assert_close(eight_bit_product(x, stored, scale), expected, atol=bound, rtol=1e-2)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
def test_eight_bit_kernel_reads_float8() -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install '.[kernels]'")
    from workers.engines.text.kernels.eight_bit_product import eight_bit_product

    torch.manual_seed(1)
    stored = torch.randn(24, 64).to(torch.float8_e4m3fn)
    x, scale = torch.randn(3, 64), torch.rand(24)
    expected = (x @ stored.float().T) * scale
    torch.testing.assert_close(eight_bit_product(x, stored, scale), expected, atol=1e-4, rtol=1e-4)
