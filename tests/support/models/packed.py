"""Repositories whose linear layers AWQ or GPTQ have quantised to 4 bits, and what they mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

#: Bits of an AWQ word, lowest first, by the column that they are of: of its kernels' own packing.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed_by_rows(numbers: Tensor) -> Tensor:
    """Pack eight rows of numbers of 4 bits in a word, as GPTQ does. [8 n, m] -> [n, m]"""
    words = torch.zeros(len(numbers) // 8, numbers.shape[1], dtype=torch.int64)
    for row, line in enumerate(numbers.long()):
        words[row // 8] |= line << (4 * (row % 8))
    return _signed(words)


def packed_by_columns(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack eight columns in a word, which has them in an order. [n, 8 m] -> [n, m]"""
    words = torch.zeros(len(numbers), numbers.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            words[:, word] |= numbers[:, 8 * word + column].long() << (4 * place)
    return _signed(words)


def make_packed(
    source: Path,
    folder: Path,
    method: str,
    *,
    group: int = 16,
    act_order: bool = False,
    settings: dict[str, Any] | None = None,
    change: Callable[[dict[str, Tensor]], None] = lambda _tensors: None,
) -> dict[str, Tensor]:
    """Write a model of packed layers in the form of another; return its weights as they mean.

    Those are (number - zero) * scale of its group, in float32. ``change``: of the files' tensors.
    """
    torch.manual_seed(11)
    tensors: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = meant[name] = weight
            continue
        outs, ins = weight.shape
        groups = ins // group
        numbers = torch.randint(0, 16, (ins, outs))
        zeros = torch.randint(1, 16, (groups, outs))
        spread = weight.abs().mean() / 4
        scales = (torch.rand(groups, outs) + 0.5).mul(spread).half()
        of = torch.arange(ins) // group
        if act_order:
            of = of[torch.randperm(ins)]
        meant[name] = ((numbers - zeros[of]).float() * scales[of].float()).t().contiguous()
        layer = name.removesuffix("weight")
        tensors[f"{layer}scales"] = scales
        if method == "awq":
            tensors[f"{layer}qweight"] = packed_by_columns(numbers, _AWQ_ORDER)
            tensors[f"{layer}qzeros"] = packed_by_columns(zeros, _AWQ_ORDER)
        else:
            old = (settings or {}).get("checkpoint_format", "gptq") == "gptq"
            tensors[f"{layer}qweight"] = packed_by_rows(numbers)
            tensors[f"{layer}qzeros"] = packed_by_columns(zeros - int(old))
            tensors[f"{layer}g_idx"] = of.int()
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    known: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": group}
    if method == "gptq":
        known |= {"desc_act": act_order, "sym": False}
    else:
        known |= {"version": "gemm", "zero_point": True}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = known | (settings or {})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return meant


def _signed(words: Tensor) -> Tensor:
    """Return words of 32 bits as the files hold them."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
