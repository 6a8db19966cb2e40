"""Text models that are more than a decoder: those that read pictures, or have an encoder."""

from pathlib import Path

import pytest

from model_store.inspection import inspect
from tests.support.model_folders import llama, write


@pytest.mark.parametrize(
    ("architecture", "files", "capabilities"),
    [
        (
            "LlavaForConditionalGeneration",
            {"preprocessor_config.json"},
            ("completion", "chat", "vision"),
        ),
        (
            "Gemma3ForConditionalGeneration",
            {"processor_config.json"},
            ("completion", "chat", "vision"),
        ),
        ("Gemma3ForConditionalGeneration", set(), ("completion", "chat")),
        ("LlamaForCausalLM", {"preprocessor_config.json"}, ("completion", "chat")),
    ],
)
def test_inspection_tells_the_models_that_read_pictures(
    tmp_path: Path, architecture: str, files: set[str], capabilities: tuple[str, ...]
) -> None:
    folder = llama(tmp_path / "model", architectures=[architecture])
    for name in files:
        write(folder / name, {})
    found = inspect(folder)
    assert (found.kind, found.capabilities) == ("text", capabilities)


def test_inspection_counts_what_a_decoder_keeps_of_an_encoder_s_tokens(tmp_path: Path) -> None:
    sizes = {"num_layers": 2, "num_heads": 2, "d_kv": 4, "d_model": 8, "n_positions": 64}
    none = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size"))
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **none, **sizes}
    folder = llama(tmp_path / "model", **config, max_position_embeddings=None)
    found = inspect(folder)
    assert (found.kind, found.max_context) == ("text", 64)
    assert found.kv_bytes_per_token == 2 * (2 * 2 * 8 * 2)
