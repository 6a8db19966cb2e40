"""Layers of a model that is split over cards: in order, evenly or as the cards have room."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.engines.base import Refused
from workers.engines.text.split import leave_indices, place_of, split

LAYER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16  #: numbers of each
ENDS = 96 * 16  #: of the embedding, and of the head
TOTAL = 2 * (6 * LAYER + 2 * ENDS + 16)  #: bytes in bfloat16


def model_of(*, tied: bool = False) -> Any:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def split_of(room: list[int], *, even: bool = True, tied: bool = False) -> dict[str, int]:
    """Return the card of each part of a model in bfloat16; ``room``: bytes of each card."""
    places = split(model_of(tied=tied), room, torch.bfloat16, "cuda", even=even)
    return {path: place.index for path, place in places.items()}


def layers_of(places: dict[str, int]) -> list[int]:
    return [places[f"model.layers.{index}"] for index in range(6)]


def test_split_gives_even_cards_as_much_each_in_the_order_of_the_layers() -> None:
    places = split_of([TOTAL, TOTAL])
    assert layers_of(places) == [0, 0, 0, 1, 1, 1]
    assert (places["model.embed_tokens"], places["model.rotary_emb"]) == (0, 0)
    assert (places["model.norm"], places["lm_head"]) == (1, 1)
    assert layers_of(split_of([TOTAL] * 3)) == [0, 0, 1, 1, 2, 2]


def test_split_puts_a_head_that_shares_the_embedding_s_weight_with_it() -> None:
    places = split_of([TOTAL, TOTAL], tied=True)
    assert layers_of(places) == [0, 0, 0, 1, 1, 1]
    assert (places["model.norm"], places["lm_head"]) == (1, 0)


def test_split_fills_uneven_cards_but_the_last_and_no_further_than_they_have_room() -> None:
    first = 2 * (ENDS + 4 * LAYER)
    assert layers_of(split_of([first, TOTAL], even=False)) == [0, 0, 0, 0, 1, 1]
    assert layers_of(split_of([first - 1, TOTAL], even=False)) == [0, 0, 0, 1, 1, 1]


def test_split_of_even_cards_uses_all_their_room_before_it_gives_up() -> None:
    full, rest = 2 * (ENDS + 4 * LAYER), 2 * (2 * LAYER + 16 + ENDS)
    assert layers_of(split_of([full, rest])) == [0, 0, 0, 0, 1, 1]
    with pytest.raises(Refused) as refused:
        split_of([full, rest - 1])
    assert refused.value.code == "OUT_OF_MEMORY"


def test_place_of_a_module_is_that_of_the_nearest_around_it() -> None:
    cards = [torch.device("cuda", index) for index in range(2)]
    places = {"": cards[0], "model.layers.1": cards[1]}
    assert place_of("model.layers.1.mlp.up_proj", places) == cards[1]
    assert place_of("model.layers.10.mlp.up_proj", places) == cards[0]
    with pytest.raises(KeyError):
        place_of("lm_head", {"model.layers.1": cards[1]})


@pytest.mark.parametrize("own", [None, "past_key_values", ["past_key_values", "cache"]])
def test_indices_of_wanted_logits_stay_beside_what_the_library_leaves(own: Any) -> None:
    model = model_of()
    leave_indices(model)  # one that lies on one card has no hook
    model._hf_hook = hook = torch.nn.Identity()
    hook.skip_keys = own
    leave_indices(model)
    left = [] if own is None else [own] if isinstance(own, str) else own
    assert hook.skip_keys == [*left, "logits_to_keep"]
