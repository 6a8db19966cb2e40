"""Tests which formats of quantised weights a machine can run, without torch."""

import pytest

from workers.engines import quantization
from workers.engines.quantization import card_lack, lacks, package_lack, reader_lack


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_installed", lambda _package: False)


@pytest.mark.parametrize(
    ("name", "capability", "is_refused"),
    [
        ("fp8", (8, 0), True),
        ("fp8", (8, 6), True),
        ("fp8", (8, 9), False),
        ("fp8", (9, 0), False),
        ("fp8", None, False),
        ("int8", (7, 5), False),
        ("nf4", (7, 5), False),
    ],
)
def test_quantization_is_refused_on_cards_without_its_numbers(
    name: str, capability: tuple[int, int] | None, is_refused: bool
) -> None:
    said = card_lack(name, capability)
    assert (said is not None) is is_refused
    assert said is None or "8.9" in said


@pytest.mark.usefixtures("nothing_installed")
def test_quantization_names_the_package_that_is_not_installed() -> None:
    assert package_lack("int8") is None
    assert "bitsandbytes is not installed" in (package_lack("nf4") or "")
    assert [name for name, lack in lacks((8, 6)).items() if lack is None] == ["int8"]


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gptq", "are quantised by gptq, and gptqmodel and optimum is not installed"),
        ("awq", "gptqmodel"),
        ("compressed-tensors", "compressed-tensors is not installed"),
        ("vptq", "none of awq"),
    ],
)
def test_quantization_of_files_names_what_reads_them(method: str, said: str) -> None:
    assert said in (reader_lack(method) or "")


@pytest.mark.usefixtures("nothing_installed")
def test_quantization_that_the_library_unpacks_needs_no_package() -> None:
    assert reader_lack("mxfp4") is None
    assert reader_lack("fp8") is None
