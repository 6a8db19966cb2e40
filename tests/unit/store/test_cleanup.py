"""Tests which models a disk budget removes: by last use, with the files they share with none."""

from datetime import UTC, datetime

from model_store.cleanup import Candidate, evicted


def candidate(name: str, day: int, files: dict[int, int]) -> Candidate:
    inodes = {(1, inode): size for inode, size in files.items()}
    return Candidate(name, datetime(2026, 1, day, tzinfo=UTC), inodes)


def test_eviction_takes_the_least_recently_used_until_the_others_fit() -> None:
    models = [candidate(name, day, {day: 100}) for name, day in (("c", 3), ("a", 1), ("b", 2))]
    taken = {(1, day): 100 for day in (1, 2, 3)}
    assert evicted(models, taken, 300) == []
    gone = evicted(models, taken, 150)
    assert [(each.name, each.bytes) for each in gone] == [("a", 100), ("b", 100)]
    assert gone[0].why == "not used since 2026-01-01; the store is full"


def test_eviction_frees_a_shared_file_with_its_last_model() -> None:
    models = [
        candidate("a", 1, {1: 70, 2: 5}),
        candidate("b", 2, {1: 70}),
        candidate("c", 3, {3: 9}),
    ]
    taken = {(1, 1): 70, (1, 2): 5, (1, 3): 9}
    gone = evicted(models, taken, 10)
    assert [(each.name, each.bytes) for each in gone] == [("a", 5), ("b", 70)]


def test_eviction_of_all_that_may_go_is_the_most() -> None:
    gone = evicted([candidate("a", 1, {1: 10})], {(1, 1): 10, (1, 2): 500}, 0)
    assert [each.name for each in gone] == ["a"]
