"""A Llama of 135M parameters with random bf16 weights and a tokenizer, made without any network."""

import json
import pydoc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS = 49_152
CONTEXT = 2048
SEED = 20261123
_TRAINED = 8192  #: words that the docstrings yield; the rest is made up
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(folder: Path) -> Path:
    """The model's folder in Hugging Face layout; made once."""
    if not folder.exists():
        draft = folder.with_name(folder.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _make_tokenizer(draft)
        _make_weights(draft)
        draft.rename(folder)
    return folder


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(_docstrings(), vocab_size=_TRAINED, show_progress=False)
    plain = json.loads(bpe.to_str())
    # Random weights may answer any of the words, so each of them needs a text.
    vocabulary = plain["model"]["vocab"]
    vocabulary |= {f"\u0120filler{number}": number for number in range(len(vocabulary), WORDS)}
    whole = Tokenizer.from_str(json.dumps(plain))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, model_max_length=CONTEXT)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def _docstrings() -> Iterator[str]:
    """Of the standard library, from its sources: the same on every machine with this Python."""
    for path in sorted(Path(pydoc.__file__).parent.glob("*.py")):
        yield from path.read_text("utf-8", "replace").split('"""')[1::2]


def _make_weights(folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=WORDS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig()  # no end token: every answer has its full length
    model.save_pretrained(folder)


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1])))
