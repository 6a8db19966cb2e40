"""Takes the pictures of the dashboard that docs/ shows: python -m scripts.dashboard_pictures.

It starts a server and a Chromium, and sends requests for a minute, so that charts have lines.
"""

import tempfile
import threading
import time
from pathlib import Path

import httpx

from tests.support.browser.chromium import find_chromium, running_chromium
from tests.support.browser.page import Page, page_at
from tests.support.server import Server, running_server

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
_LOADED = ("demo-echo", "demo-text", "demo-image", "demo-speech")
_SETTINGS = ("workers.threads=1", "models.demo-echo.fake.faults=true")
_QUESTIONS = ("What is BitingLip?", "How do I pull a model?", "What is a worker?", "Who are you?")
_ANSWERS, _SECONDS = 40, 40  #: of chats, and how long they take at least, before the first picture


def main() -> None:
    """Write the pictures."""
    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium is installed (apt-get install chromium)")
    sets = [word for each in _SETTINGS for word in ("--set", each)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "home", *sets) as server,
        running_chromium(program) as address,
        page_at(address) as page,
    ):
        with server.client(timeout=300) as client:
            for model in _LOADED:
                client.post(f"/api/v1/models/{model}/load").raise_for_status()
            _post(client, "demo-echo", "!oom")  # an error to be shown
            _post_image(client)
        _sign_in(page, server)
        _take_all(page, server)


def _sign_in(page: Page, server: Server) -> None:
    page.open(server.url)
    page.fill("API key", server.key)
    page.click("Sign in")
    page.wait("document.querySelector('h1')?.textContent === 'Overview'")


def _take_all(page: Page, server: Server) -> None:
    ended, answered = threading.Event(), list[str]()
    asking = threading.Thread(target=_ask, args=(server, ended, answered))
    asking.start()
    try:
        until = time.monotonic() + _SECONDS
        while len(answered) < _ANSWERS or time.monotonic() < until:
            ended.wait(1)
            page.run("0")  # reads what the browser tells meanwhile
        page.screen(1280, 1010, phone=False)
        _take(page, "dashboard")
        page.narrow()
        _take(page, "dashboard-phone")
    finally:
        ended.set()
        asking.join()
    page.desktop()
    page.go("models")
    _take(page, "models")
    _chat(page)
    page.go("requests")
    page.scheme("dark")
    _take(page, "requests")


def _chat(page: Page) -> None:
    page.go("playground/chat")
    page.choose("Model", "demo-text")
    page.choose("Temperature", "0")
    page.fill("Message", _QUESTIONS[0])
    page.click("Send")
    page.wait("/ tokens .* first after/.test(bl.text())")
    _take(page, "playground")


def _take(page: Page, name: str) -> None:
    page.wait("!document.querySelector('.skeleton')")
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    page.scheme("dark" if name == "requests" else "light")
    (PICTURES / f"{name}.png").write_bytes(page.picture())


def _ask(server: Server, ended: threading.Event, answered: list[str]) -> None:
    """Ask one thing after another until that is to end."""
    with server.client(timeout=300) as client:
        turn = 0
        while not ended.wait(0.3 * (turn % 4)):
            answered.append(_post(client, "demo-text", _QUESTIONS[turn % len(_QUESTIONS)]))
            turn += 1


def _post(client: httpx.Client, model: str, words: str) -> str:
    message = {"role": "user", "content": words}
    asked = {"model": model, "messages": [message], "stream": True}
    return client.post("/v1/chat/completions", json=asked).text


def _post_image(client: httpx.Client) -> None:
    body = {
        "model": "demo-image",
        "prompt": "a blue star",
        "width": 128,
        "height": 128,
        "steps": 20,
    }
    client.post("/api/v1/inference/image-generation", json=body)


if __name__ == "__main__":
    main()
