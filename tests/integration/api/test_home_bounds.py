"""Files below the home: each is documented with its bound, and the bounds hold."""

import re
from pathlib import Path

import httpx

from bitinglip.home import Home
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.wait import eventually

DOCUMENT = Path(__file__).parents[3] / "docs" / "home.md"


def documented() -> list[str]:
    rows = [line.split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row[1])]


def test_home_s_names_are_documented_with_their_bounds(served: Served) -> None:
    known = {getattr(Home(Path("/h")), name) for name in dir(Home) if _is_path(name)}
    names = documented()
    assert {path.name for path in known} <= set(names)
    with httpx.Client(base_url=served.url, headers=served.headers("inference:text")) as client:
        assert client.post(NATIVE, json={**PROMPT, "async": True}).status_code == 202
    patterns = [name.removesuffix("...") for name in names]
    for path in served.home.root.iterdir():
        assert any(path.name.startswith(each) for each in patterns), path.name


def _is_path(name: str) -> bool:
    return isinstance(getattr(Home, name), property) and not name.startswith("_")


def test_caches_of_compilers_are_bounded_by_the_setting(tmp_path: Path) -> None:
    old, new = (tmp_path / "home" / "cache" / "demo" / kind / "code" for kind in ("old", "new"))
    gone = tmp_path / "home" / "cache" / "removed" / "triton" / "code"
    for path in (old, new, gone):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100_000))
    with serve(tmp_path, files={"max_cache_bytes": 150_000}):
        eventually(lambda: not gone.parents[1].exists())
        eventually(lambda: [old.exists(), new.exists()].count(True) == 1)
