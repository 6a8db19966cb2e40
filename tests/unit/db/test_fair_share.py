"""A table beyond its bound shrinks at the cost of the keys that hold most."""

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.db.fair_share import share_of_each


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=6), st.integers(0, 3000))
def test_fair_share_fills_the_bound_and_spares_small_keys(sizes: dict[str, int], most: int) -> None:
    share = share_of_each(sizes, most)
    left = {key: min(size, share) for key, size in sizes.items()}
    assert sum(left.values()) <= most or not sizes
    if sum(sizes.values()) <= most:
        assert left == sizes
    else:
        assert most - sum(left.values()) < len(sizes)
