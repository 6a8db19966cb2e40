"""RAM for loading a text model onto a card: no copy of its weights is made there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

#: Loads a model for a card that keeps nothing, by a new process for each number format, and prints
#: by how much the peak of RAM grew.
MEASURE = """
import os, resource, sys
from pathlib import Path
import torch
from workers.engines.text import loading
from workers.protocol import Load
path = Path(sys.argv[1])
spec = Load(model="m", engine="text", path=str(path), device="cuda")
config = loading._config(path)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for dtype in (torch.bfloat16, torch.float16):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    before = peak()
    model = loading._model(path, config, dtype, torch.device("meta"), spec, spread=False)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    print(peak() - before, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model of 190 MB of bfloat16 in shards of at most 50 MB."""
    path = tmp_path_factory.mktemp("sharded")
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12}
    config = LlamaConfig(**sizes, **heads, vocab_size=500, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).to_empty(device="cpu").save_pretrained(path, max_shard_size="50MB")
    return path


def test_ram_of_a_load_onto_a_card_is_less_than_the_model(sharded: Path) -> None:
    total = sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(sharded)],
        check=True,
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert total > 180_000_000
    peaks = list(map(int, done.stdout.splitlines()))
    assert len(peaks) == 2
    assert 0 < max(peaks) < total / 2
