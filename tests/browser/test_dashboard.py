"""The dashboard as a person uses it, in a headless Chromium."""

import os
import signal
from pathlib import Path

import pytest

from bitinglip.api.dashboard import FOLDER
from tests.browser.conftest import keep_picture
from tests.support.audio import voice
from tests.support.browser.axe import serious_findings
from tests.support.browser.page import Page
from tests.support.http_client import NATIVE
from tests.support.hub import REPO
from tests.support.server import Server
from tests.support.wait import eventually

pytestmark = pytest.mark.long_file

PAGES = sorted(path.stem for path in (FOLDER / "js" / "pages").glob("*.js"))


def test_dashboard_chats_with_a_stream_that_can_be_stopped(page: Page, screen: str) -> None:
    page.go("playground/chat")
    page.choose("Model", "demo-text")
    page.choose("Temperature", "0")
    page.choose("Max tokens", "100")
    page.fill("Message", "What is BitingLip?")
    page.click("Send")
    page.see("private inference server")
    page.wait("/ tokens .* first after/.test(bl.text())")
    assert page.run("document.querySelector('.card pre').textContent").startswith("curl ")
    page.click("Python")
    page.see("from openai import OpenAI")
    keep_picture(page, f"chat-{screen}")
    assert serious_findings(page) == []
    page.click("Clear chat")
    page.choose("Model", "demo-echo")
    page.fill("Message", "!slow one two")
    page.click("Send")
    page.click("Stop")
    page.see("stopped")
    page.click("Clear chat")


def test_dashboard_chats_in_a_schema_and_with_tools(page: Page) -> None:
    page.go("playground/chat")
    page.choose("Model", "demo-text")
    page.run("document.querySelector('.play details').open = true")
    page.click("a schema")
    page.fill("Message", "What is BitingLip?")
    page.click("Send")
    page.wait("document.querySelector('.turn.assistant .markdown')?.innerText.startsWith('{')")
    page.wait("/ tokens .* first after/.test(bl.text())")
    page.fill("Schema of the answer", "{")
    page.fill("Message", "again")
    page.click("Send")
    page.see("The schema is no JSON")
    page.choose("Schema of the answer", "")
    page.click("a tool")
    page.choose("Whether to call one", "required")
    page.fill("Message", "Is it warm in Lima?")
    page.click("Send")
    page.wait("bl.has('field', 'Result of weather')")
    fields = "document.querySelectorAll('.results input')"  # it may have called more than once
    page.run(f"""{fields}.forEach((each) => (each.value = '{{"degrees": 21}}'))""")
    page.choose("Whether to call one", "none")
    page.click("Send the results")
    page.wait("document.querySelector('.turn.tool .text')?.innerText === '{\"degrees\": 21}'")
    page.wait("bl.has('button', 'Clear chat')")
    assert not page.run("document.querySelector('.turn [role=alert]') !== null")
    page.choose("Tools", "")
    page.click("Clear chat")


def test_dashboard_pulls_a_model_and_transcribes_with_it(
    page: Page, server: Server, screen: str, tmp_path: Path
) -> None:
    name = f"whisper-{screen}"
    page.go("models")
    page.click("Pull a model")
    page.fill("Repository", REPO)
    page.fill("Name here", name)
    page.click("Pull")
    page.see(f"{name} completed")
    page.click(f"Take {name} off the list")
    page.wait("!bl.text().includes('Downloads')")
    page.click(f"Pin {name}", within=name)
    page.wait(f"bl.find('button', 'Pin {name}').getAttribute('aria-pressed') === 'true'")
    with server.client() as client:
        assert client.get(f"/api/v1/models/{name}").json()["pinned"]
    page.click(name, within=name)
    page.see("Architecture")
    page.click("Close")
    (tmp_path / "said.wav").write_bytes(voice())
    page.go("playground/transcription")
    page.attach("A sound file", tmp_path / "said.wav")
    page.click("Transcribe")
    page.wait("/s of \\w+ in/.test(bl.text())")
    assert serious_findings(page) == []
    page.click("Record")
    page.click("Stop after…")
    page.see("recording.webm,")


def test_dashboard_makes_an_image_step_by_step(page: Page, screen: str) -> None:
    page.go("playground/images")
    for label, value in (("Width", "64"), ("Height", "64"), ("Steps", "3"), ("Seed", "7")):
        page.fill(label, value)
    page.click("Generate")
    page.see("made in")
    assert page.run("document.querySelector('figure img').naturalWidth") == 64
    page.see("seed 7")
    keep_picture(page, f"image-{screen}")
    assert serious_findings(page) == []


def test_dashboard_plays_speech(page: Page) -> None:
    page.go("playground/speech")
    page.fill("Text", "Good morning.")
    page.click("Speak")
    page.wait("document.querySelector('audio')?.currentTime > 0")
    page.see("of sound in")
    assert page.run("document.querySelector('a[download]').download") == "speech.mp3"
    assert serious_findings(page) == []


def test_dashboard_makes_rotates_and_revokes_a_key(page: Page, server: Server, screen: str) -> None:
    name = f"browser-{screen}"
    page.go("keys")
    page.click("Create a key")
    page.fill("Name", name)
    scopes = ("models:read see the models", "inference:text texts, embeddings, rerank")
    for scope in scopes:
        page.click(scope, "field")
    page.click("Create")
    page.see("Choose at least one scope.")  # and the form is drawn again, with what was typed
    page.click(scopes[0], "field")
    page.click("Create")
    first = page.wait("document.querySelector('.secret code')?.textContent")
    assert serious_findings(page) == []
    page.click("I have kept it")
    page.click("Rotate", within=name)
    page.choose("The old secret ends", "0s")
    page.click("Rotate")
    second = page.wait("document.querySelector('.secret code')?.textContent")
    page.click("I have kept it")
    for key, status in ((first, 401), (second, 200)):
        with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
            assert client.get("/v1/models").status_code == status
    page.click(f"Revoke {name}", within=name)
    page.click("Revoke")
    page.see(f"{name} is revoked.")


def test_dashboard_cancels_a_task_and_shows_the_requests(page: Page, server: Server) -> None:
    with server.client(headers={**server.headers, "prefer": "respond-async"}) as client:
        body = {"model": "demo-echo", "prompt": "!slow a", "max_tokens": 1000}
        task = client.post(NATIVE, json=body).json()["task_id"]
        page.go("tasks")
        page.click("Cancel", within=f"…{task[-8:]}")
        page.click("Cancel the task")
        eventually(lambda: client.get(f"/api/v1/tasks/{task}").json()["status"] == "cancelled")
    with server.client() as client:
        client.post(NATIVE, json={"model": "demo-echo", "prompt": "a", "max_tokens": 2})
    page.go("requests")
    page.click(f"POST {NATIVE}")
    page.see("Total")
    page.see("demo-echo/0")
    assert serious_findings(page) == []
    page.click("Close")


def test_dashboard_shows_a_killed_worker_and_its_return(page: Page, server: Server) -> None:
    with server.client() as client:
        client.post("/api/v1/models/demo-echo/load").raise_for_status()
    worker = server.worker("demo-echo")
    before, restarts = worker["pid"], worker["restarts"]
    page.go("workers")
    page.see(f"process {before}")
    os.kill(before, signal.SIGKILL)
    page.wait(f"!bl.text().includes('process {before}')")
    page.wait("bl.row('demo-echo/0')?.innerText.includes('ready')")
    shown = page.run("bl.row('demo-echo/0').querySelector('[data-label=Restarts]').innerText")
    assert int(shown) == restarts + 1


@pytest.mark.parametrize("screen", ["desktop"])
def test_documentation_of_the_api_needs_nothing_from_elsewhere(page: Page, server: Server) -> None:
    page.open(f"{server.url}/docs")
    page.see("/api/v1/cluster/requests")
    page.open(server.url)
    page.wait("document.querySelector('h1')?.textContent === 'Overview'")


def test_dashboard_is_found_through_by_its_links(page: Page) -> None:
    """Each page is reached by the links that this screen shows, and says that it is the one."""
    for name in PAGES:
        page.click(name.capitalize(), role="link")
        page.wait(f"document.querySelector('h1')?.textContent === '{name.capitalize()}'")
        assert page.run("document.querySelector('.nav [aria-current]').innerText.trim()") == (
            name.capitalize()
        )


def test_dashboard_pages_fit_the_screen_and_are_accessible(page: Page, screen: str) -> None:
    """axe finds nothing serious in light and dark, and no page is wider than its screen."""
    page.see("Devices over time")
    wide = {}
    findings = {}
    for name in PAGES:
        page.go(name)
        page.wait("!document.querySelector('.skeleton')")
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            keep_picture(page, f"{name}-{screen}-{scheme}")
            if found := serious_findings(page):
                findings[name, scheme] = found
        if overflow := page.run("bl.overflow()"):
            wide[name] = overflow
    page.scheme("light")
    assert findings == {}
    assert wide == {}
