"""Output of the commands."""

import json

import pytest

from cli.show.output import amount, clean, moment, show_json, show_pairs, show_table, size


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with\ttab\nand line", "plain, with\ttab\nand line"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("over\rwritten\x08", "overwritten"),
        ("\x9b2J\x85\x7f\x00", "2J"),
        ("abc\u202edcba\u2066x", "abcdcbax"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
        ("Grüße 世界 🚀", "Grüße 世界 🚀"),
    ],
)
def test_control_characters_are_not_printed(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1250000, "1.2 MB"),
        (999999, "1.0 MB"),
        (16060522240, "16.1 GB"),
        (3 * 10**15, "3.0 PB"),
    ],
)
def test_sizes_are_written_in_units(count: int | None, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "-"),
        (812, "812"),
        (134515008, "135M"),
        (8030261248, "8.0B"),
        (999900000, "1.0B"),
    ],
)
def test_amounts_are_written_with_their_noun(count: int | None, shown: str) -> None:
    assert amount(count) == shown


def test_moments_are_written_as_ages() -> None:
    assert moment(None) == "-"
    assert moment("not a time\x1b") == "not a time"
    assert moment("2026-11-23T03:24:20.123Z").startswith("2026-11-2")


def test_table_is_aligned_and_never_cut_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "x" * 300
    show_table(("NAME", "SIZE", "NOTE"), [("a", 1, long), ("[b]b[/b]", 1000, None)], right="SIZE")
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.rstrip().endswith(long)
    assert second.startswith("[b]b[/b]")
    assert second.rstrip().endswith("-")
    assert head.index("SIZE") + 4 == first.index("1") + 1 == second.index("1000") + 4


def test_pairs_leave_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    show_pairs({"name": "x", "cause": None, "count": 0, "tags": ["a", "b"]})
    assert capsys.readouterr().out.split() == ["name", "x", "count", "0", "tags", "a,", "b"]


def test_pairs_show_values_by_name_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_pairs({"load_seconds": {"cache": 4.9, "disk": 6.0}, "none": {}})
    assert capsys.readouterr().out == "load_seconds  cache 4.9, disk 6.0\n"


def test_json_is_safe_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\x1b[31m\x9b\u202e\ud800 é"}
    show_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == value
