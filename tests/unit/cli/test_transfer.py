"""Tests what a terminal shows of a pull."""

import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from cli.commands.downloads import show_events
from cli.commands.pull import Transfer, transfer
from cli.show.output import print_note


def shown(monkeypatch: pytest.MonkeyPatch, work: Callable[[Transfer], None]) -> str:
    """Run the work with its errors on a terminal; return all that was written there."""
    near, far = pty.openpty()
    with os.fdopen(far, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        with transfer("org/model", "asking the hub") as progress:
            work(progress)
    pieces = []
    with os.fdopen(near, "rb", buffering=0) as screen, suppress(OSError):  # its other end is closed
        while piece := screen.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_transfer_that_ends_before_its_plan_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, lambda _: None)
    assert "asking the hub" in text
    assert "bytes" not in text


def test_transfer_prints_its_notes_on_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(progress: Transfer) -> None:
        progress.clear()
        print_note("6 files")
        progress.plan({"a": 10}, {})
        progress.advance("a", 10)

    text = shown(monkeypatch, work)
    before, _, after = text.partition("6 files")
    assert before.endswith(("\x1b[2K", "\x1b[2m")), "the spinner is removed first"
    assert "━" not in before
    assert "10/10 bytes" in after


def test_download_that_waits_for_the_same_again_says_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits: tuple[str, dict[str, Any]] = ("progress", {"waits_for": "the hub", "files": []})
    tries: tuple[str, dict[str, Any]] = ("progress", {"waits_for": None, "files": []})
    disk: tuple[str, dict[str, Any]] = ("progress", {"waits_for": "room on the disk", "files": []})
    with transfer("org/model") as progress:
        show_events([waits, tries, waits, tries, disk, ("completed", {"files": []})], progress)
    assert capsys.readouterr().err.splitlines() == [
        "It waits for the hub",
        "It waits for room on the disk",
    ]
