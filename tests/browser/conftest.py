"""One server and one browser for all tests of the dashboard, signed in with the admin's key.

Each test that takes ``page`` runs twice: on the screen of a desktop in light, and on that of a
phone in dark.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.api_server import Served
from tests.support.browser.chromium import find_chromium, running_chromium
from tests.support.browser.page import Page, page_at
from tests.support.hub import fake_hub
from tests.support.models.whisper import LENIENT, make
from tests.support.server import Server, running_server

USED = ("demo-text", "demo-image", "demo-speech")
#: where pictures of the pages are written; none are unless it is set
PICTURES = os.environ.get("DASHBOARD_PICTURES")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a server with the demo models, and a hub on this machine that has a tiny Whisper."""
    folder = tmp_path_factory.mktemp("browser")
    with fake_hub(make(folder / "whisper", **LENIENT)) as hub:
        sets = (
            f"hub.endpoint={hub.url}",
            "workers.threads=1",
            "models.demo-echo.fake.faults=true",
        )
        words = [word for each in sets for word in ("--set", each)]
        with (
            running_server(folder / "home", *words, forked_workers=True) as server,
            ThreadPoolExecutor() as pool,
        ):
            for model in USED:  # side by side, while the first tests run
                pool.submit(_load, server, model)
            yield server


def _load(server: Server, model: str) -> None:
    with server.client() as client:
        client.post(f"/api/v1/models/{model}/load")


@pytest.fixture(scope="session")
def browser_page(server: Server) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with running_chromium(program) as address, page_at(address) as page:
        sign_in(page, server)
        check_quiet(page, server)
        yield page


def sign_in(page: Page, server: Server) -> None:
    """Sign in anew: a page that is opened again has a session still, but knows no key."""
    page.open(server.url)
    page.run("sessionStorage.clear()")
    page.open(server.url)
    page.fill("API key", server.key)
    page.click("Sign in")
    page.wait("document.querySelector('h1')?.textContent === 'Overview'")


@pytest.fixture(params=["desktop", "phone"])
def screen(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser_page: Page, server: Server, screen: str) -> Iterator[Page]:
    """Open the dashboard at its overview; a test must leave no error in its console, send requests
    to our server only, and leave nothing that is wider than the screen or not accessible."""
    try:
        browser_page.wait("document.querySelector('dialog[open]') === null", 5)
    except AssertionError:  # an earlier test failed
        sign_in(browser_page, server)
    if screen == "phone":
        browser_page.narrow()
    else:
        browser_page.desktop()
    browser_page.scheme("dark" if screen == "phone" else "light")
    browser_page.go("overview")  # so that each page begins as it does for a person who comes
    yield browser_page
    check_quiet(browser_page, server)
    assert browser_page.run("bl.overflow()") <= 0


def check_quiet(page: Page, server: Server | Served) -> None:
    """Check that the console is empty, and that all requests went to the server; forget both."""
    complaints, requests = page.complaints, page.requests
    page.complaints, page.requests = [], []
    assert complaints == []
    assert any(url.startswith(server.url) for url in requests)
    inside = (server.url, "blob:", "data:")
    assert [url for url in requests if not url.startswith(inside)] == []


def keep_picture(page: Page, name: str) -> None:
    """Write a picture of the page, if pictures are wanted."""
    if PICTURES:
        folder = Path(PICTURES)
        folder.mkdir(parents=True, exist_ok=True)
        page.run("scrollTo(0, 0)")
        (folder / f"{name}.png").write_bytes(page.picture())
