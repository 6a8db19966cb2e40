"""Links to files: signed for one file and one time, and worth nothing when changed."""

from urllib.parse import parse_qsl

import pytest

from bitinglip.access.links import Links

FILE = "task-1-0.png"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def parts(links: Links, file_id: str = FILE) -> tuple[str, str]:
    query = dict(parse_qsl(links.query(file_id).removeprefix("?")))
    return query["expires"], query["signature"]


def test_link_opens_its_file_until_its_time_is_over() -> None:
    clock = Clock()
    links = Links(b"secret", 60, clock)
    expires, signature = parts(links)
    assert links.is_ours(FILE, expires, signature)
    clock.now += 59
    assert links.is_open(expires)
    clock.now += 1
    assert not links.is_open(expires)
    assert links.is_ours(FILE, expires, signature)
    assert Links(b"secret", 60, clock).is_ours(FILE, expires, signature)  # after a restart


def test_link_that_was_changed_is_invalid() -> None:
    links = Links(b"secret", 60)
    expires, signature = parts(links)
    assert not links.is_ours("task-2-0.png", expires, signature)
    assert not links.is_ours(FILE, f"{int(expires) + 1}", signature)
    assert not links.is_ours(FILE, f"0{expires}", signature)
    assert not links.is_ours(f"{FILE}\n{expires}", "", signature)
    assert not Links(b"another", 60).is_ours(FILE, expires, signature)
    for wrong in ("", signature[:-1], signature.upper(), signature + "0", "\u00e4", "\ud800"):
        assert not links.is_ours(FILE, expires, wrong)


@pytest.mark.parametrize("expires", ["", "-1", "1e9", "\u0661", "9" * 13, "nan"])
def test_link_with_an_invalid_time_is_refused(expires: str) -> None:
    assert not Links(b"secret", 60, Clock()).is_open(expires)


def test_links_that_are_turned_off_open_nothing_any_more() -> None:
    clock = Clock()
    expires, _ = parts(Links(b"secret", 60, clock))
    off = Links(b"secret", 0, clock)
    assert off.query(FILE) == ""
    assert not off.is_open(expires)
