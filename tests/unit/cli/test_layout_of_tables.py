"""Tables on terminals of every width: names stay whole, and what has no room goes below its row."""

import pytest

from cli.commands import models
from cli.show.layout import lay_out

COLUMNS = ("ID", "NAME", "LAST USED", "N", "SCOPES")
ROWS = [
    ("GWMDBCk0EsrF", "admin", "2026-11-27 11:27", "12", "models:read, inference:text"),
    ("7iMD209PEwYe", "東京", "-", "7", "-"),
]


def lines(width: int) -> list[str]:
    return list(lay_out(COLUMNS, ROWS, width, right=["N"], below=["SCOPES"]))


def test_table_that_fits_is_one_line_a_row() -> None:
    head, first, second = lines(80)
    assert first == "GWMDBCk0EsrF  admin  2026-11-27 11:27  12  models:read, inference:text"
    assert head.index("SCOPES") == first.index("models:read")
    assert second == "7iMD209PEwYe  東京   -                  7  -"  # each sign is two cells wide


def test_table_folds_the_last_column_between_words() -> None:
    found = lines(68)
    assert found[1].endswith("  models:read,")
    assert found[2].strip() == "inference:text"
    assert found[2].index("inference") == found[1].index("models:read")


def test_table_puts_below_a_row_what_has_no_room_beside_it() -> None:
    assert lines(50) == [
        "ID            NAME   LAST USED          N",
        "GWMDBCk0EsrF  admin  2026-11-27 11:27  12",
        "  scopes: models:read, inference:text",
        "7iMD209PEwYe  東京   -                  7",
    ]


@pytest.mark.parametrize("width", [1, 20, 30, 40, 60, 200])
def test_table_breaks_no_id_at_any_width(width: int) -> None:
    text = "\n".join(lines(width))
    for whole in ("GWMDBCk0EsrF", "7iMD209PEwYe", "models:read,", "inference:text", "2026-11-27"):
        assert whole in text


def test_table_folds_times_before_it_is_too_wide() -> None:
    assert lines(35)[1:3] == ["GWMDBCk0EsrF  admin  2026-11-27  12", "                     11:27"]


def test_table_of_models_fits_60_columns() -> None:
    row = ("demo-embedding", "embedding", "embedding", "946.0 kB", "134M", "2048")
    last = ("2 h", "yes", "available")
    found = list(
        lay_out(
            models.COLUMNS,
            [(*row, *last)],
            60,
            right=["SIZE", "CONTEXT"],
            below=models.BELOW.split(),
        )
    )
    assert max(map(len, found)) <= 60
    assert found[1].split() == ["demo-embedding", "embedding", "946.0", "kB", "available"]
    below = " ".join(line.strip() for line in found[2:])
    assert below == "engine: embedding; parameters: 134M; context: 2048; used: 2 h; fits: yes"
