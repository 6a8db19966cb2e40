"""Tiny speech models of other families, of the real classes with random weights, on disk."""

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import (
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SpeechT5Tokenizer,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

WIDTH = 24  #: of a speaker's vector


def make_vits(folder: Path, *, speakers: int = 1, language: str | None = "eng") -> Path:
    """Make a VITS such as MMS's: letters, 16 kHz."""
    torch.manual_seed(7)
    folder.mkdir(parents=True)
    letters = ["-", *"abcdefghijklmnopqrstuvwxyz' ", "<unk>"]
    config = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        duration_predictor_filter_channels=16,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
        depth_separable_num_layers=2,
        upsample_initial_channel=16,
        upsample_rates=[8, 4],
        upsample_kernel_sizes=[16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        sampling_rate=16_000,
    )
    VitsModel(config).save_pretrained(folder)
    words = folder / "vocab.json"
    words.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    VitsTokenizer(
        str(words), pad_token="-", unk_token="<unk>", language=language, phonemize=False
    ).save_pretrained(folder)
    return folder


def make_speecht5(folder: Path, *, voices: tuple[str, ...] = ("anna", "bert")) -> Path:
    """Make a SpeechT5 without its vocoder, as its repository is."""
    torch.manual_seed(8)
    folder.mkdir(parents=True)
    pieces = folder / "spm_char.model"
    pieces.write_bytes(_pieces())
    tokenizer = SpeechT5Tokenizer(str(pieces))
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        num_mel_bins=10,
        speaker_embedding_dim=WIDTH,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_layers=2,
        speech_decoder_postnet_units=16,
        reduction_factor=2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = SpeechT5ForTextToSpeech(config)
    with torch.no_grad():
        model.speech_decoder_postnet.prob_out.bias.fill_(-3)  # else it stops at once
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    random = np.random.default_rng(9)
    for voice in voices:
        path = folder / "speaker_embeddings" / f"{voice}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, random.standard_normal(WIDTH).astype(np.float32))
    return folder


def make_vocoder(folder: Path) -> Path:
    torch.manual_seed(9)
    config = SpeechT5HifiGanConfig(
        model_in_dim=10,
        sampling_rate=16_000,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    SpeechT5HifiGan(config).save_pretrained(folder)
    return folder


def _pieces() -> bytes:
    """Return a SentencePiece model of letters."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz HELLO'.,?! the quick brown fox"] * 20),
        model_writer=trained,
        model_type="char",
        vocab_size=48,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return trained.getvalue()
