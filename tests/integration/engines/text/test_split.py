"""A model that the library splits over cards: its layers lie as planned, and copies between cards
are right.

No card is needed: the library's answers are looked at before it places anything.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models.text import make_tiny_model
from workers.engines.base import Refused
from workers.engines.peer_copies import check_copies
from workers.engines.text import loading
from workers.engines.text.loading import check_placement
from workers.protocol import Load

CPU = torch.device("cpu")
CARDS = [torch.device("cpu", index) for index in range(3)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one whose projections are not joined: those are split by us."""
    return make_tiny_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.mark.parametrize("elsewhere", ["cpu", "disk", CPU])
def test_multi_device_model_with_a_part_off_the_cards_is_out_of_memory(elsewhere: Any) -> None:
    check_placement({"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": "cuda:1"})
    check_placement({"": torch.device("cuda", 0)})
    with pytest.raises(Refused) as caught:
        check_placement({"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": elsewhere})
    assert caught.value.code == "OUT_OF_MEMORY"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the library would find a card")
def test_multi_device_load_checks_where_the_library_has_put_the_layers(
    path: Path,
) -> None:
    with pytest.raises(Refused) as caught:
        loading._model(
            path,
            loading._config(path),
            torch.float32,
            CPU,
            Load(model="m", engine="text", path=str(path)),
            spread=True,
        )
    assert caught.value.code == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    ("even", "weights", "split"),
    [(True, (3000, 3000), "balanced"), (False, (3000, 2000), "sequential")],
)
def test_spread_load_is_bounded_by_the_plan(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    even: bool,
    weights: tuple[int, int],
    split: str,
) -> None:
    """The library would look for free memory by itself, on each card."""
    told: list[Any] = []

    class Told(Exception):
        pass

    def choose(_model: Any, device_map: Any, max_memory: Any, _quantizer: Any) -> Any:
        told.append((device_map, max_memory))
        raise Told

    monkeypatch.setattr("transformers.modeling_utils._get_device_map", choose)
    spec = Load(model="m", engine="text", path=str(path), device_weights=weights, even_split=even)
    with pytest.raises(Told):
        loading._model(path, loading._config(path), torch.float32, CPU, spec, spread=True)
    assert told == [(split, dict(enumerate(weights)))]


def test_split_over_cards_whose_copies_arrive_as_they_were_sent() -> None:
    targets: list[torch.device] = []

    def copy(sent: torch.Tensor, target: torch.device) -> torch.Tensor:
        targets.append(target)
        return sent.clone()

    check_copies(CARDS, copy)
    assert sorted(target.index for target in targets) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("number", "way"), [(0, "0 sends to card 1"), (5, "2 sends to card 1")])
def test_split_is_refused_where_one_copy_arrives_with_one_other_bit(number: int, way: str) -> None:
    calls = 0

    def copy(sent: torch.Tensor, _target: torch.device) -> torch.Tensor:
        nonlocal calls
        arrived = sent.clone()
        if calls == number:
            arrived[777] ^= 1
        calls += 1
        return arrived

    with pytest.raises(Refused) as refused:
        check_copies(CARDS, copy)
    assert refused.value.code == "MODEL_LOAD_FAILED"
    assert way in refused.value.message
