"""Linear layers as oneDNN wants them: the same numbers, and nothing held of the file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workers.engines.packed_linear import PackedLinear, join, pack, pack_all, unmap

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}


class Model(nn.Module):
    """Is made of two linear layers, a normalisation, and a head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.again = nn.Embedding(50, 16)
        self.again.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.body(self.embed(ids) + self.again(ids)) * self.scale
        logits: torch.Tensor = self.head(hidden)
        return logits


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [0, 1, 10, 300])
def test_packed_linear_computes_each_number_format_as_before(dtype: torch.dtype, rows: int) -> None:
    layer = nn.Linear(24, 40).to(dtype).requires_grad_(False)
    x = torch.randn(rows, 3, 24, dtype=dtype)
    packed = pack(layer)(x)
    assert (packed.shape, packed.dtype) == ((rows, 3, 40), dtype)
    assert torch.allclose(packed, layer(x), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@torch.no_grad()
def test_packed_model_computes_the_same_and_lets_go_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mapped.safetensors"
    torch.manual_seed(0)
    tensors = Model().state_dict()
    del tensors["head.weight"], tensors["again.weight"]
    save_file(tensors, path)
    model = Model()
    model.load_state_dict(load_file(path), strict=False, assign=True)
    model.head.weight = model.again.weight = model.embed.weight
    ids = torch.arange(20).view(4, 5)
    before = model(ids)
    assert str(path) in Path("/proc/self/maps").read_text()
    pack_all(model)
    unmap(model)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert isinstance(model.head, PackedLinear)
    assert isinstance(model.body[0], PackedLinear)
    assert model.again.weight is model.embed.weight
    assert torch.allclose(model(ids), before, atol=1e-5)


CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_are_views_of_one_storage_and_compute_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(24, out, bias=bias).requires_grad_(False) for out in (40, 8, 8)]
    x = torch.randn(5, 24)
    before = [layer(x) for layer in layers]
    join(*layers, device=CPU)
    assert all(torch.equal(layer(x), y) for layer, y in zip(layers, before, strict=True))
    for name in ("weight", "bias") if bias else ("weight",):
        parts = [getattr(layer, name) for layer in layers]
        storages = {part.untyped_storage().data_ptr() for part in parts}
        assert len(storages) == 1
        assert parts[0].untyped_storage().nbytes() == sum(4 * part.numel() for part in parts)
    first = layers[0].weight
    join(*layers, device=CPU)
    assert layers[0].weight is first, "what is joined stays as it is"


def test_joined_layers_share_their_bytes_with_those_that_are_not_packed() -> None:
    """float64 is packed on no processor; every format is computed so on a card."""
    layers = [nn.Linear(24, out).double().requires_grad_(False) for out in (40, 8)]
    x = torch.randn(5, 24, dtype=torch.float64)
    joined = pack(*layers)
    assert torch.allclose(joined(x), torch.cat([layer(x) for layer in layers], dim=-1), atol=1e-12)
    layers[1].weight.zero_()
    layers[1].bias.fill_(7.0)
    assert torch.equal(joined(x)[:, 40:], torch.full((5, 8), 7.0, dtype=torch.float64))


def test_joined_layers_all_have_a_bias_or_none() -> None:
    with pytest.raises(ValueError, match="bias"):
        join(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), device=CPU)
