"""Small tokenizers of several kinds with chat templates of several families."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %}{{ m.content.strip() }}{{ eos_token }}{% endif %}{% endfor %}"
)
AS_JSON = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ {'who': m.role, 'says': m.content} | "
    "tojson }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = {"chatml": CHATML, "mistral": MISTRAL, "json": AS_JSON, "bare": BARE}

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>|_/[](){}:;,.!?\"'`= -"
_MERGES = [("h", "i"), ("t", "h"), ("th", "e"), ("<", "|"), ("|", ">"), ("i", "n"), ("in", "g")]


def byte_level() -> Tokenizer:
    """Return a byte-level tokenizer such as Llama 3's and Qwen's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in _MERGES)]
    backend = Tokenizer(models.BPE(_numbered(words), _MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece() -> Tokenizer:
    """Return a tokenizer such as Llama 2's: a space is put before a text."""
    return _spaced(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def metaspace() -> Tokenizer:
    """Return a tokenizer such as Gemma's and newer Mistrals': only the beginning of the whole text
    gets a space."""
    backend = _spaced(None)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return backend


def unigram() -> Tokenizer:
    """Return a tokenizer such as T5's: its model knows the control tokens as words."""
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁hi", -3.0), ("ing", -4.0)]
    words += [(letter, -5.0) for letter in _LETTERS.replace(" ", "") + "\n"]
    backend = Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def _spaced(normalizer: Any) -> Tokenizer:
    merges = [("h", "i"), ("▁", "hi"), ("i", "n"), ("in", "g")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += [*_LETTERS.replace(" ", ""), *("".join(pair) for pair in merges)]
    backend = Tokenizer(
        models.BPE(_numbered(words), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "unigram": unigram,
}


def chat_tokenizer(kind: str, template: str | None) -> PreTrainedTokenizerFast:
    """Make a tokenizer with control tokens, and tags that are no special tokens."""
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in CONTROL])
    backend.add_tokens([AddedToken(each, normalized=False, special=False) for each in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer
