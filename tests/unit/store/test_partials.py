"""Partial files on the disk during a pull."""

import hashlib
from pathlib import Path

import pytest

from model_store.hub.partials import BLOCK, Part, Wanted
from model_store.progress import Counter

DATA = bytes(range(256)) * 20_000


def wanted(data: bytes) -> Wanted:
    return Wanted("x", (), len(data), hashlib.sha256(data).hexdigest(), None)


@pytest.mark.parametrize("piece", [1 << 16, 1 << 18, (1 << 20) + 1])
def test_resume_after_any_piece_lacks_at_most_a_block(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "part"
    with Part(wanted(DATA), path, Counter(None, {})) as part:
        for at in range(0, len(DATA), piece):
            part.take(DATA[at : at + piece])
            assert part.coming == min(at + piece, len(DATA))
            assert part.coming - path.stat().st_size < BLOCK
    with Part(wanted(DATA), path, Counter(None, {})) as again:
        assert again.size == path.stat().st_size
        again.take(DATA[again.size :])
        again.write()
        assert again.verify(lambda: None)
        assert again.sha256 == again.wanted.sha256
        path.write_bytes(DATA[:-1])
        assert not again.verify(lambda: None), "the disk has less than was written"
        path.write_bytes(DATA[:-1] + b"x")
        assert not again.verify(lambda: None), "the disk has other bytes than were written"


def test_resume_throws_away_what_is_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(DATA + b"x")
    with Part(wanted(DATA), path, Counter(None, {})) as part:
        assert part.size == 0
