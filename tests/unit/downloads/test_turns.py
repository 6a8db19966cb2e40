"""Turns: which download of several keys is next."""

from bitinglip.downloads.download import Download, Priority, Requester, Wanted, new_download
from bitinglip.downloads.turns import Turns


def made(key: str, at: float, priority: Priority = "normal") -> Download:
    download = new_download(Wanted(repo="a/b", name=f"{key}-{at}"), Requester(key), priority)
    download.queued_at = at
    return download


def order(turns: Turns, waiting: list[Download], slots: int) -> list[str]:
    """Run as many at once as there are slots; the one that began first ends first."""
    running: list[Download] = []
    begun = []
    while waiting:
        if len(running) == slots:
            running.pop(0)
        if (download := turns.next(waiting, running)) is None:
            running.pop(0)
            continue
        waiting.remove(download)
        running.append(download)
        begun.append(download.wanted.name)
    return begun


def test_turns_of_keys_alternate_within_a_priority() -> None:
    waiting = [made("a", at) for at in range(4)] + [made("b", 10), made("b", 11), made("c", 12)]
    assert order(Turns(None), waiting, 1) == ["a-0", "b-10", "c-12", "a-1", "b-11", "a-2", "a-3"]


def test_turns_go_by_priority_before_keys() -> None:
    waiting = [made("a", 0), made("a", 1, "high"), made("b", 2, "low"), made("a", 3, "high")]
    assert order(Turns(None), waiting, 1) == ["a-1", "a-3", "a-0", "b-2"]


def test_turn_is_that_of_the_key_with_the_fewest_running() -> None:
    turns, running = Turns(None), [made("a", 0), made("a", 1), made("b", 2)]
    waiting = [made("a", 3), made("b", 4)]
    found = turns.next(waiting, running)
    assert found is waiting[1]


def test_turns_leave_places_free_that_a_key_may_not_take() -> None:
    turns, running = Turns(1), [made("a", 0)]
    assert turns.next([made("a", 1)], running) is None
    other = made("b", 2, "low")
    assert turns.next([made("a", 1), other], running) is other
