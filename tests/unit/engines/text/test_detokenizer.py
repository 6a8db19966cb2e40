"""Ids to text, one at a time: whole characters only, and in the end what the library decodes."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.support.models.text import EOS, VOCAB, train_tokenizer
from workers.engines.text.detokenizer import DetokenizerFactory

TEXTS = [
    "plain words, one after the other",
    "żółć naïve Ωmega",
    "漢字かな交じり文",
    "🦊👩‍👩‍👧‍👦🇵🇱!",
    "  leading and trailing  ",
    "a\u0301 combining",
]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer such as Llama 2's: a word begins with U+2581, unknown characters are
    bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁one", "▁two", "one", "two", "ab", *"abcdefghijklmnopqrstuvwxyz,.!"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def stream(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    detokenizer = DetokenizerFactory(tokenizer).new()
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_detokenizer_gives_a_character_split_at_every_byte_whole(
    byte_level: PreTrainedTokenizerFast, text: str
) -> None:
    letters = dict(zip(_byte_order(), range(256), strict=True))
    names = {byte: chr(code) for code, byte in letters.items()}
    ids = [byte_level.convert_tokens_to_ids(names[byte]) for byte in text.encode()]
    pieces = stream(byte_level, ids)
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)


def _byte_order() -> list[int]:
    """Return the code points of the letters for the bytes 0 to 255 in byte-level BPE."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [byte if byte in shown else next(others) for byte in range(256)]


@pytest.mark.parametrize("text", TEXTS)
def test_detokenizer_of_byte_level_text_is_the_library_s(
    byte_level: PreTrainedTokenizerFast, text: str
) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    assert "".join(stream(byte_level, ids)) == byte_level.decode(ids) == text


@pytest.mark.parametrize("seed", range(20))
def test_detokenizer_of_random_ids_is_the_library_s(
    byte_level: PreTrainedTokenizerFast, seed: int
) -> None:
    ids = [random.Random(seed * 50 + place).randrange(VOCAB) for place in range(50)]
    whole = byte_level.decode(ids, skip_special_tokens=True)
    assert "".join(stream(byte_level, ids)) == whole


def test_detokenizer_leaves_special_tokens_out(byte_level: PreTrainedTokenizerFast) -> None:
    ids = [byte_level.convert_tokens_to_ids(EOS), *byte_level.encode("a")]
    assert "".join(stream(byte_level, ids)) == "a"


@pytest.mark.parametrize("text", TEXTS)
def test_detokenizer_with_byte_fallback_gives_whole_characters_and_inner_spaces(
    sentencepiece: PreTrainedTokenizerFast, text: str
) -> None:
    ids = [sentencepiece.convert_tokens_to_ids("▁one")]
    ids += [sentencepiece.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]
    ids += [sentencepiece.convert_tokens_to_ids("▁two")]
    pieces = stream(sentencepiece, ids)
    assert "".join(pieces) == sentencepiece.decode(ids) == f"one{text} two"
    assert all("�" not in piece for piece in pieces)


def test_detokenizer_does_not_hold_text_back_for_bytes_that_are_no_character(
    sentencepiece: PreTrainedTokenizerFast,
) -> None:
    ids = [sentencepiece.convert_tokens_to_ids("<0xFF>")] * 100
    pieces = stream(sentencepiece, ids)
    assert pieces.count("") < len(pieces) - 3
    assert set("".join(pieces)) == {"�"}


def test_detokenizer_keeps_the_first_space_of_a_text_that_goes_on(
    sentencepiece: PreTrainedTokenizerFast,
) -> None:
    ids = sentencepiece.convert_tokens_to_ids(["▁one", "▁two"])
    factory = DetokenizerFactory(sentencepiece)
    assert factory.new().push(ids[1]) == "two"
    assert factory.new(ids[:1]).push(ids[1]) == " two"
    end = sentencepiece.eos_token_id
    assert factory.new([*ids[:1], end]).push(ids[1]) == " two"
