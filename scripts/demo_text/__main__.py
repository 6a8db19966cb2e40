"""Makes the files of ``demo-text`` in the package, in some minutes: python -m scripts.demo_text.

``--work FOLDER`` keeps the state of the training there, so that a run that was ended goes on.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

from safetensors.torch import save_file

import model_store.demo
from model_store.demo.text import CONFIG, TOKENS, WORDS
from model_store.demo.words import train_tokenizer
from scripts.demo_text.conversations import ANSWERS, topics, vocabulary
from scripts.demo_text.training import train

FILES = Path(model_store.demo.__file__).parent / "text_model"


def main() -> None:
    """Train, and write the files."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--work", type=Path)
    work = asked.parse_args().work
    known = topics()
    tokenizer = train_tokenizer(TOKENS, vocabulary(known), WORDS)
    with tempfile.TemporaryDirectory() as made:
        model = train(known, tokenizer, CONFIG, work or Path(made))
    FILES.mkdir(exist_ok=True)
    tokenizer.save(str(FILES / "tokenizer.json"))
    tensors = {name: each.detach().contiguous() for name, each in model.named_parameters()}
    told = {"format": "pt", "answers": answers_digest()}
    save_file(tensors, FILES / "model.safetensors", metadata=told)


def answers_digest() -> str:
    """Return what tells whether the answers have changed since the training."""
    return hashlib.sha256(ANSWERS.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
