"""Number of CPU threads that compute a model."""

from pathlib import Path

import pytest

from workers.engines.cpu_threads import threads_for
from workers.protocol import Load

_MIB = 1024 * 1024


def _model(folder: Path, *sizes: int) -> Load:
    for number, size in enumerate(sizes):
        part = folder / f"part{number}"
        part.mkdir()
        with (part / "weights.safetensors").open("wb") as file:
            file.truncate(size)
    return Load(model="m", engine="text", path=str(folder))


@pytest.mark.parametrize(
    ("sizes", "threads"),
    [((_MIB,), 1), ((8 * _MIB, 7 * _MIB), 1), ((8 * _MIB, 8 * _MIB), None), ((), None)],
)
def test_threads_follow_the_weights_of_all_parts(
    tmp_path: Path, sizes: tuple[int, ...], threads: int | None
) -> None:
    assert threads_for(_model(tmp_path, *sizes), {}) == threads


def test_threads_of_the_operator_win(tmp_path: Path) -> None:
    tiny = _model(tmp_path, _MIB)
    assert threads_for(tiny, {"OMP_NUM_THREADS": "2"}) is None
    assert threads_for(tiny, {"MKL_NUM_THREADS": "2"}) is None
    chosen = Load(model="m", engine="text", path=str(tmp_path), threads=3)
    assert threads_for(chosen, {"OMP_NUM_THREADS": "2"}) == 3


def test_threads_of_a_card_are_left_alone(tmp_path: Path) -> None:
    _model(tmp_path, _MIB)
    on_card = Load(model="m", engine="text", path=str(tmp_path), device="cuda")
    assert threads_for(on_card, {}) is None
