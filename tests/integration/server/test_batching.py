"""Text models share steps or take turns, as `models show` tells it of loaded ones."""

from pathlib import Path

import pytest

from tests.support.cli_runner import command
from tests.support.models.packed import make_packed
from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model
from tests.support.server import Server

SHARED = "continuous: requests at once share each step, in the paged cache"
TURNS = "requests at once take turns, each with the library's own cache: "


def make_model(kind: str, folder: Path) -> Path:
    """Write a model that is computed in one of the ways."""
    if kind == "four bits":
        make_packed(make_tiny_model("llama", folder / "full"), folder / "model", "awq")
    elif kind == "hybrid":
        make_sequential_model("lfm2", folder / "model")
    else:
        make_tiny_model("llama", folder / "model")
    return folder / "model"


@pytest.mark.parametrize(
    ("kind", "batching", "quantization"),
    [
        ("paged", SHARED, None),
        ("hybrid", TURNS + "2 of its 4 layers are not plain attention", None),
        ("four bits", SHARED, "awq"),
    ],
)
def test_batching_and_its_reason_are_shown_once_a_model_is_loaded(
    server: Server, tmp_path: Path, kind: str, batching: str, quantization: str | None
) -> None:
    def shown() -> dict[str, str]:
        told = command(server.home, "models", "show", "shown")
        assert told.code == 0, told.err
        pairs = (line.split(None, 1) for line in told.out.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    folder = make_model(kind, tmp_path)
    with server.client() as client:
        made = client.post("/api/v1/models/import", json={"path": str(folder), "name": "shown"})
        assert made.status_code == 201, made.text
        try:
            assert "batching" not in shown()
            assert client.post("/api/v1/models/shown/load").status_code == 200
            found = shown()
            assert found["batching"] == batching
            assert found.get("quantization") == quantization
            told = client.get("/api/v1/models/shown").json()["sequential"]
            assert told == (batching.removeprefix(TURNS) if kind == "hybrid" else None)
        finally:
            assert client.delete("/api/v1/models/shown").status_code == 204
