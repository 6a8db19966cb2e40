"""Shows the answer of `models fit` to people."""

from typing import Any

import pytest

from cli.commands.fit import _show, suggestions

GB = 1_000_000_000


def answer(**device: int) -> dict[str, Any]:
    row = {"id": "n1:0", "name": "card", "memory_bytes": 8 * GB, "free_bytes": 2 * GB, **device}
    return {
        "message": "m fits.",
        "fits": True,
        "needs": None,
        "devices": [row],
        "ways_out": [],
    }


def test_fit_shows_unused_models_here_and_of_other_gateways_where_there_are_some(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _show(answer(idle_bytes=0, idle_elsewhere_bytes=0))
    assert "UNUSED" not in capsys.readouterr().out
    _show(answer(idle_bytes=0, idle_elsewhere_bytes=5 * GB))
    told = capsys.readouterr().out
    assert "ELSEWHERE" in told
    assert "5.0 GB" in told
    assert "UNUSED" not in told


def test_fit_says_what_other_gateways_unload_for_a_suggestion() -> None:
    way = {"setting": "a", "value": 1, "needs_bytes": GB, "device": "n1:0", "evict": ["b"]}
    (line,) = suggestions([{**way, "evict_elsewhere_bytes": 2 * GB}])
    assert "after unloading b, 2.0 GB of other gateways' unused models" in line
