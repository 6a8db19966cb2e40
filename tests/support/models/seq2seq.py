"""Tiny models with an encoder for the prompt and a decoder for the answer."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSeq2SeqLM, MBart50Tokenizer

from tests.support.models.text import EOS, VOCAB, train_tokenizer

_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "init_std": 0.3,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "n_positions": 128,
    "initializer_factor": 4.0,
}
#: Its decoder looks back through a window at its own tokens, and at all of the prompt.
_GEMMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "sliding_window": 8,
    "query_pre_attn_scalar": 12,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5gemma": {
        "encoder": _GEMMA,
        "decoder": _GEMMA,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
    },
    "mbart": {**_BART, "scale_embedding": True},
}
FAMILIES = tuple(_CONFIGS)


def make_seq2seq_model(family: str, folder: Path) -> Path:
    """Write a model with its tokenizer to ``folder``; mBART's answers begin with one token."""
    tokenizer = train_tokenizer(None)
    end: int = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, end)]
    )
    special = {
        "pad_token_id": 3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "decoder_start_token_id": end,
    }
    config = AutoConfig.for_model(family, **{**_CONFIGS[family], **special})
    torch.manual_seed(sum(family.encode()))
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    settings = model.generation_config
    settings.forced_bos_token_id = 77 if family == "mbart" else None
    settings.forced_eos_token_id = None
    settings.decoder_start_token_id = end
    settings.bad_words_ids = [[3]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_translator(folder: Path) -> Path:
    """Write a tiny mBART with the tokenizer of mBART 50, which marks prompts with languages."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    letters = ("\N{LOWER ONE EIGHTH BLOCK}", *string.ascii_letters, ".", ",", " ")
    vocab = [*((token, 0.0) for token in special), *((letter, -1.0) for letter in letters)]
    tokenizer = MBart50Tokenizer(vocab=vocab, src_lang="en_XX")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = AutoConfig.for_model("mbart", **{**_BART, **ids})
    torch.manual_seed(5)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.generation_config.forced_eos_token_id = None
    model.generation_config.decoder_start_token_id = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
