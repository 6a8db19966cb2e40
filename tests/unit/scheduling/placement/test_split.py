"""A model that no card holds alone: even shares, but for cards that are too small for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.scheduling.placement.estimate import Footprint
from bitinglip.scheduling.placement.split import shares, weight_limits

ROOMS = {"large": 24, "small": 12, "tiny": 1}


@pytest.mark.parametrize(
    ("total", "parts", "found"),
    [
        (20, 2, {"large": 10, "small": 10}),
        (30, 2, {"large": 18, "small": 12}),
        (36, 2, {"large": 24, "small": 12}),
        (37, 2, None),
        (37, 3, None),  # a card with next to no room is no help
        (20, 3, None),
    ],
)
def test_split_of_a_model_over_unequal_cards(
    total: int, parts: int, found: dict[str, int] | None
) -> None:
    assert shares(total, ROOMS, parts) == found


@given(
    st.integers(10, 200),
    st.dictionaries(st.text(max_size=2), st.integers(-5, 50), max_size=5),
    st.integers(2, 5),
)
def test_split_holds_all_and_fits_everywhere(total: int, rooms: dict[str, int], parts: int) -> None:
    found = shares(total, rooms, parts)
    if found is None:
        return
    assert (len(found), sum(found.values())) == (parts, total)
    assert all(0 < size <= rooms[device] for device, size in found.items())


NEED = Footprint(weights=240, cache=40, activations=8, overhead=12)


def test_split_evenly_leaves_the_cache_s_share_to_the_cache() -> None:
    assert weight_limits((156, 156), NEED) == (135, 135)


def test_split_unevenly_leaves_a_filled_card_room_for_all_else() -> None:
    """The last takes what whole layers leave of the others."""
    first, second = weight_limits((200, 112), NEED)
    assert first == int((200 - 12) * 240 / 288)
    assert 112 - 12 < second + 5 < 112
    assert first + second >= NEED.weights
