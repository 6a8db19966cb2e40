"""Number formats of models, by their files and cards."""

import pytest

from workers.engines.dtypes import doubt, dtype_for

H100, AMPERE, TURING, VOLTA = (9, 0), (8, 6), (7, 5), (7, 0)
RTX = "NVIDIA GeForce RTX 2080 Ti"
GTX = "NVIDIA GeForce GTX 1660 SUPER"


@pytest.mark.parametrize(
    ("kind", "stored", "capability", "name", "expected"),
    [
        ("text", "bfloat16", None, "", "bfloat16"),
        ("text", "float16", None, "", "bfloat16"),
        ("text", None, None, "", "float32"),
        ("image", "bfloat16", None, "", "float32"),
        ("bark", "float32", None, "", "float32"),
        ("whisper", "float16", None, "", "float32"),
        ("text", "float32", H100, "", "bfloat16"),
        ("text", "bfloat16", AMPERE, "", "bfloat16"),
        ("text", "float16", AMPERE, "", "float16"),
        ("text", "bfloat16", TURING, RTX, "float16"),
        ("text", "bfloat16", VOLTA, "Tesla V100", "float16"),
        ("text", "bfloat16", TURING, GTX, "float16"),
        ("image", "float32", (8, 0), "", "bfloat16"),
        ("image", "float16", H100, "", "float16"),
        ("image", "bfloat16", TURING, RTX, "float16"),
        ("image", "bfloat16", TURING, "Tesla T4", "float16"),
        ("image", "float16", TURING, GTX, "float32"),
        ("image", "float16", TURING, "NVIDIA T1000 8GB", "float32"),
        ("image", "float16", TURING, "Quadro T2000", "float32"),
        ("image", "float16", TURING, "NVIDIA GeForce MX450", "float32"),
        ("image", "float16", TURING, "NVIDIA GeForce MX550", "float32"),
        ("image", "float16", AMPERE, "NVIDIA GeForce MX570", "float16"),
        ("bark", "float32", H100, "", "bfloat16"),
        ("bark", "float32", TURING, RTX, "float16"),
        ("bark", "float32", TURING, GTX, "float32"),
        ("whisper", "float32", H100, "", "float16"),
        ("whisper", "float16", TURING, GTX, "float32"),
        ("vits", "float32", H100, "", "float32"),
        ("speecht5", "float32", TURING, RTX, "float32"),
    ],
)
def test_dtype_by_kind_files_and_card(
    kind: str, stored: str | None, capability: tuple[int, int] | None, name: str, expected: str
) -> None:
    assert dtype_for(kind, stored, capability, name) == expected


@pytest.mark.parametrize(
    ("model_type", "capability", "expected"),
    [
        ("gemma2", TURING, "float32"),
        ("gemma3_text", VOLTA, "float32"),
        ("gemma3_text", AMPERE, "bfloat16"),
        ("llama", TURING, "float16"),
    ],
)
def test_dtype_of_text_that_overflows_in_half_precision(
    model_type: str, capability: tuple[int, int], expected: str
) -> None:
    assert dtype_for("text", "bfloat16", capability, RTX, model_type=model_type) == expected


def test_dtype_of_the_settings_is_doubted_where_the_card_is_bad_at_it() -> None:
    assert "emulated" in (doubt("text", "bfloat16", TURING, RTX) or "")
    assert "NaN" in (doubt("image", "float16", TURING, GTX) or "")
    assert doubt("text", "float16", TURING, GTX) is None
    assert doubt("image", "float32", TURING, GTX) is None
    assert doubt("image", "bfloat16", AMPERE, "") is None
    assert doubt("image", "bfloat16", None, "") is None
