"""Reads of the paged cache: the right blocks, in a workspace that seldom grows."""

import pytest
import torch

from workers.engines.text import float8
from workers.engines.text.cache import BlockTable, LayerShape, PagedCache

CPU = torch.device("cpu")
SHAPE = LayerShape(kv_heads=2, key_dim=4, value_dim=3, window=None, device=CPU)
BLOCKS, BLOCK_SIZE = 300, 4


@pytest.fixture
def cache() -> PagedCache:
    made = PagedCache([SHAPE, SHAPE], BLOCKS, BLOCK_SIZE, dtype=torch.float32)
    for layer, page in enumerate(made.pages):
        page.copy_(torch.randn(page.shape, generator=torch.Generator().manual_seed(layer)))
    return made


def scattered(blocks: int) -> BlockTable:
    """Return one sequence whose blocks do not lie side by side."""
    return BlockTable.of([list(range(BLOCKS, BLOCKS - blocks, -1))], CPU)


def test_cache_workspace_takes_few_sizes_while_a_sequence_grows(cache: PagedCache) -> None:
    sizes = set()
    for blocks in range(2, 201):
        for layer in range(2):
            keys, values = cache.read(layer, scattered(blocks))
            storage = keys.untyped_storage()
            assert storage.data_ptr() == values.untyped_storage().data_ptr()
            sizes.add(storage.nbytes())
    elements = 200 * BLOCK_SIZE * SHAPE.width
    assert len(sizes) <= elements.bit_length() - (2 * BLOCK_SIZE * SHAPE.width).bit_length() + 1
    assert max(sizes) < 2 * 4 * elements


def test_cache_reads_for_a_graph_are_in_memory_of_their_own(cache: PagedCache) -> None:
    shared, _ = cache.read(0, scattered(9))
    with cache.own_copies():
        own, _ = cache.read(0, scattered(9))
        cache.release_workspace()
    again, _ = cache.read(1, scattered(9))
    assert torch.equal(own, cache.read(0, scattered(9))[0])
    places = [each.untyped_storage().data_ptr() for each in (shared, own, again)]
    assert places[1] not in (places[0], places[2])


def test_cache_reads_are_the_blocks_whatever_was_read_before(
    cache: PagedCache,
) -> None:
    for layer, rows in ((0, [[5, 1], [9, 0]]), (1, [[2, 8]]), (0, [[7, 3], [1, 6], [4, 2]])):
        keys, values = cache.read(layer, BlockTable.of(rows, CPU))
        pages = cache.pages[layer].view(BLOCKS + 1, BLOCK_SIZE, SHAPE.width)
        expected = torch.stack([pages[row].flatten(0, 1) for row in rows])
        assert torch.equal(keys.flatten(2), expected[..., :8])
        assert torch.equal(values.flatten(2), expected[..., 8:])


def test_cache_workspace_is_given_back(cache: PagedCache) -> None:
    cache.read(0, scattered(9))
    assert cache._workspaces
    cache.release_workspace()
    assert not cache._workspaces
    keys, _ = cache.read(0, scattered(2))
    assert keys.shape == (1, 2 * BLOCK_SIZE, 2, 4)


ALL_BYTES = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cache_of_eight_bits_widens_every_number_exactly(dtype: torch.dtype) -> None:
    expected = ALL_BYTES.view(float8.DTYPE).to(dtype)
    found = float8.widen(ALL_BYTES, torch.empty(256, dtype=dtype))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_cache_of_eight_bits_keeps_what_is_too_large_and_what_is_no_number() -> None:
    rows = torch.tensor([[1e9, -1e9, float("nan"), 0.0, 1.0]])
    found = float8.widen(float8.narrow(rows), torch.empty_like(rows))
    assert found[0, 2].isnan()
    assert found.nan_to_num().tolist() == [[448.0, -448.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("eight_bits", [False, True])
def test_cache_tells_blocks_that_hold_what_is_no_number(eight_bits: bool) -> None:
    made = PagedCache([SHAPE] * 2, BLOCKS, BLOCK_SIZE, dtype=torch.float32, eight_bits=eight_bits)
    rows = torch.ones(1, SHAPE.width)
    rows[0, -1] = float("nan")
    made.write(1, torch.tensor([290 * BLOCK_SIZE + 1]), rows)
    assert made.hold_numbers([*range(290), 291])
    assert not made.hold_numbers(range(280, 300))
    made.scrub([290])
    assert made.hold_numbers(range(300))


@pytest.mark.parametrize("blocks", [[3, 4], [4, 2]])
def test_cache_of_eight_bits_reads_what_was_written(blocks: list[int]) -> None:
    small = PagedCache([SHAPE], BLOCKS, BLOCK_SIZE, dtype=torch.float32, eight_bits=True)
    rows = torch.randn(2 * BLOCK_SIZE, SHAPE.width, generator=torch.Generator().manual_seed(1))
    slots = [block * BLOCK_SIZE + place for block in blocks for place in range(BLOCK_SIZE)]
    small.write(0, torch.tensor(slots), rows)
    keys, values = small.read(0, BlockTable.of([blocks], CPU))
    expected = rows.to(float8.DTYPE).float()
    assert torch.equal(keys.flatten(2)[0], expected[:, :8])
    assert torch.equal(values.flatten(2)[0], expected[:, 8:])
    assert small.pages[0].element_size() == 1
