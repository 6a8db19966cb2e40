"""Tiny models with an encoder for the prompt and a decoder for the answer."""

import inspect
import io
import json
import string
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
)

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


def make_marian(folder: Path) -> Path:
    """Write a tiny Marian with its own tokenizer: two SentencePiece files, and what numbers both.

    Some pieces have no number, so they are read as the unknown one.
    """
    folder.mkdir()
    pieces: list[str] = []
    for name, things in (("source", (json, Path, dict)), ("target", (str, inspect, list))):
        pieces += _train_pieces(folder / f"{name}.spm", things)
    numbered = [">>de<<", *dict.fromkeys(piece for piece in pieces if piece[0] != "<")]
    del numbered[5::17]
    vocab = {piece: place for place, piece in enumerate(["</s>", "<unk>", *numbered, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json")
    )
    padding = vocab["<pad>"]
    ids = {"pad_token_id": padding, "eos_token_id": 0, "decoder_start_token_id": padding}
    shape = {**_BART, "vocab_size": len(vocab), "scale_embedding": True, **ids}
    _save(AutoConfig.for_model("marian", **shape), padding, folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_m2m100(folder: Path) -> Path:
    """Write a tiny M2M100 with its own tokenizer: its tokens of languages stand in no file."""
    folder.mkdir()
    pieces = _train_pieces(folder / "sentencepiece.bpe.model", (json, Path, dict))
    numbered = dict.fromkeys(["<s>", "<pad>", "</s>", *pieces])
    vocab = {piece: place for place, piece in enumerate(numbered)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"), src_lang="en"
    )
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    shape = {**_BART, "vocab_size": max(tokenizer.id_to_lang_token) + 9, **ids}
    _save(AutoConfig.for_model("m2m_100", **shape), 2, folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_pieces(file: Path, things: tuple[object, ...]) -> list[str]:
    """Train a SentencePiece model on docstrings. -> its pieces, in the order of their ids"""
    lines = [line for each in things for line in (inspect.getdoc(each) or "").splitlines()]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=150,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    file.write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return [model.id_to_piece(place) for place in range(model.get_piece_size())]


def _save(config: Any, start: int, folder: Path) -> None:
    torch.manual_seed(5)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.generation_config.forced_eos_token_id = None
    model.generation_config.decoder_start_token_id = start
    model.save_pretrained(folder)


def make_translator(folder: Path) -> Path:
    """Write a tiny mBART with the tokenizer of mBART 50, which marks prompts with languages."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    letters = ("\N{LOWER ONE EIGHTH BLOCK}", *string.ascii_letters, ".", ",", " ")
    vocab = [*((token, 0.0) for token in special), *((letter, -1.0) for letter in letters)]
    tokenizer = MBart50Tokenizer(vocab=vocab, src_lang="en_XX")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    _save(AutoConfig.for_model("mbart", **{**_BART, **ids}), 2, folder)
    tokenizer.save_pretrained(folder)
    return folder
