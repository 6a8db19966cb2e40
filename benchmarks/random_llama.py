"""Makes Llamas with random bf16 weights and a tokenizer, without any network.

Shapes: ``135m`` is quick on a CPU, ``135m-2`` has two of its layers and a long context; ``gb`` is
1.1 GB, half a billion parameters; ``1b`` is that of Llama-3.2-1B, ``8b`` of Llama-3.1-8B, of which
``8b-8`` has eight layers, 2.8 billion parameters; ``tiny`` loads in a moment.
"""

import json
import pydoc
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20261123
_TRAINED = 8192  #: words that the docstrings yield at most; the rest is made up
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Holds the sizes of a Llama, as its config names them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    words: int  #: of the vocabulary
    context: int
    tied: bool = True  #: the head shares the embedding's weights


SHAPES = {
    "tiny": Shape(128, 2, 4, 4, 256, 1024, 32_768),
    "135m": Shape(576, 30, 9, 3, 1536, 49_152, 2048),
    "135m-2": Shape(576, 2, 9, 3, 1536, 49_152, 65_536),
    "gb": Shape(2048, 8, 32, 8, 8192, 32_768, 8192),
    "1b": Shape(2048, 16, 32, 8, 8192, 128_256, 131_072),
    "8b": Shape(4096, 32, 32, 8, 14_336, 128_256, 131_072, tied=False),
    "8b-8": Shape(4096, 8, 32, 8, 14_336, 128_256, 131_072, tied=False),
}
WORDS, CONTEXT = SHAPES["135m"].words, SHAPES["135m"].context


def make_model(folder: Path, shape: str = "135m", device: str = "cpu") -> Path:
    """Return the model's folder in Hugging Face layout; made once, with weights drawn on
    ``device``.

    The same seed gives other weights on a card. A card's memory stays with the caller's allocator.
    """
    if not folder.exists():
        draft = folder.with_name(folder.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        build_tokenizer(shape).save_pretrained(draft)
        build_model(shape, device).save_pretrained(draft)
        draft.rename(folder)
    return folder


def build_tokenizer(shape: str) -> Any:
    """Make a byte-level BPE tokenizer with a text for each word of the vocabulary."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    sizes = SHAPES[shape]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _docstrings(), vocab_size=min(_TRAINED, sizes.words), show_progress=False
    )
    plain = json.loads(bpe.to_str())
    # Random weights may answer any of the words, so each of them needs a text.
    vocabulary = plain["model"]["vocab"]
    vocabulary |= {
        f"\u0120filler{number}": number for number in range(len(vocabulary), sizes.words)
    }
    whole = Tokenizer.from_str(json.dumps(plain))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, model_max_length=sizes.context)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _docstrings() -> Iterator[str]:
    """Return docstrings of the standard library, from its sources: the same for each Python
    version."""
    for path in sorted(Path(pydoc.__file__).parent.glob("*.py")):
        yield from path.read_text("utf-8", "replace").split('"""')[1::2]


def build_model(shape: str, device: str = "cpu") -> Any:
    """Return a ``LlamaForCausalLM`` in bfloat16 on ``device``, its weights drawn there.

    It has no end token: every answer has its full length.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    sizes = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.intermediate,
        vocab_size=sizes.words,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig()
    return model.eval()


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1])))
