"""A tiny model one of whose tokens turns everything after it into what is no number."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.models.text import make_tiny_model, train_tokenizer

POISON = "Z"  #: the token, as text


def make_poisoned_model(folder: Path) -> Path:
    """Make a llama whose embedding of ``POISON`` is infinite; its head is sound."""
    make_tiny_model("llama", folder)
    weights = load_file(folder / "model.safetensors")
    sound = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][poison_id()] = float("inf")
    weights["lm_head.weight"] = sound
    config = (folder / "config.json").read_text()
    config = config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    (folder / "config.json").write_text(config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def poison_id() -> int:
    token: int = train_tokenizer().convert_tokens_to_ids(POISON)
    return token
