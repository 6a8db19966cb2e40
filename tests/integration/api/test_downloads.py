"""Downloads over HTTP, from a small hub, each by a real process."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.api_server import Served, serve
from tests.support.audit_log import on_disk
from tests.support.hub import REPO, SHA, FakeHub
from tests.support.large_models import BLOCK, SIZE, hold, large_hub, let_go, renew
from tests.support.lora_files import write_text_lora
from tests.support.model_folders import llama
from tests.support.sse import SseEvent, events_of, iter_events
from tests.support.wait import eventually

DOWNLOAD, DOWNLOADS = "/api/v1/models/download", "/api/v1/models/downloads"
WORDS = {"model_name": REPO, "source": "huggingface", "priority": "normal"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("downloads")
    (root / "token").touch(0o600)
    (root / "token").write_text("hf_of_the_server\n")
    bounds = {"max_downloads": 1, "max_queued_per_key": 3}
    settings = {"endpoint": hub.url, "token_file": str(root / "token"), **bounds}
    often, models = {"stream_comment_interval": 0.2}, {"first": {"preload": True}}
    with serve(root, hub=settings, server=often, models=models) as served:
        yield served


@pytest.fixture
def admin(served: Served, hub: FakeHub) -> Iterator[httpx.Client]:
    """Provide a client; each test finds the hub well and leaves no download behind."""
    renew(hub)
    with httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60) as client:
        yield client
        for each in client.get(DOWNLOADS).json()["data"]:
            if each["state"] in ("queued", "running"):
                client.delete(f"{DOWNLOADS}/{each['id']}")


def ask(client: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(DOWNLOAD, json={**WORDS, "name": name, **fields})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{DOWNLOADS}/{found['id']}"
    return found


def shown(client: httpx.Client, download: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"{DOWNLOADS}/{download['id']}").json()
    return found


def events(client: httpx.Client, download: dict[str, Any]) -> list[SseEvent]:
    return events_of(client.get(f"{DOWNLOADS}/{download['id']}/events").content)


def await_bytes(client: httpx.Client, download: dict[str, Any]) -> None:
    """Wait until a part of the weights is there."""
    eventually(lambda: shown(client, download)["bytes_done"] >= BLOCK)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_download_ends_with_a_model_that_can_be_used_at_once(
    served: Served, hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "first", revision="main", priority="high")
    assert (download["model"], download["repo"], download["source"]) == (
        "first",
        REPO,
        "huggingface",
    )
    with admin.stream("GET", f"{DOWNLOADS}/{download['id']}/events") as answer:
        next(iter_events(answer.iter_lines()))  # and a client that leaves
    with admin.stream("GET", f"{DOWNLOADS}/{download['id']}/events") as answer:
        told = iter_events(answer.iter_lines())
        before = [next(told)]
        await_bytes(admin, download)
        let_go(hub)
        *more, (name, last) = told
    before += more
    assert name == "completed", last
    assert {each for each, _ in before} == {"progress"}
    counted = [data["bytes_done"] for _, data in before]
    assert counted == sorted(counted)
    assert last["bytes_done"] == last["bytes_total"] > SIZE
    assert (last["revision"], last["error"]) == (SHA, None)
    assert [note for note in last["notes"] if note.startswith("Memory: it fits on cpu")]
    # Its settings preload it, and it has come only now.
    eventually(lambda: admin.get("/api/v1/models/first").json()["status"] == "ready")
    # A late reader gets the end at once, and only that.
    assert events(admin, download) == [("completed", last)]
    assert shown(admin, download) == last
    eventually(lambda: on_disk(served.home, action="model.pull", target="first"))
    (asked,) = on_disk(served.home, action="model.download", target="first")
    (arrived,) = on_disk(served.home, action="model.pull", target="first")
    assert asked["actor"] == arrived["actor"]
    assert SHA in arrived["after"]
    metrics = admin.get("/metrics").text
    assert 'bitinglip_downloads_ended_total{state="completed"} ' in metrics
    assert 'bitinglip_downloads{state="running"} 0' in metrics
    assert ("Bearer hf_of_the_server") in {token for _, token in hub.requests}
    again = admin.post(DOWNLOAD, json={**WORDS, "name": "first"})
    assert refusal(again) == (409, "CONFLICT")


def test_download_that_runs_shows_as_a_model_that_cannot_be_used_yet(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "coming")
    await_bytes(admin, download)
    listed = admin.get("/api/v1/models", params={"status": "downloading"}).json()["data"]
    assert [(each["model_id"], each["download"]) for each in listed] == [("coming", download["id"])]
    assert 0 < listed[0]["progress"] < 1
    assert admin.get("/api/v1/models/coming").json()["status"] == "downloading"
    load = admin.post("/api/v1/models/coming/load")
    assert refusal(load) == (404, "INVALID_MODEL")
    assert "being downloaded (" in load.json()["error"]["message"]
    assert load.json()["error"]["details"]["download"] == download["id"]
    text = admin.post(
        "/api/v1/inference/text-generation", json={"model": "coming", "prompt": "hello"}
    )
    assert "being downloaded" in text.json()["error"]["message"]


def test_download_asked_again_is_joined_and_another_of_its_name_refused(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    first = ask(admin, "one", priority="low")
    assert ask(admin, "one", priority="high")["id"] == first["id"]
    assert shown(admin, first)["priority"] == "high"
    other = admin.post(DOWNLOAD, json={**WORDS, "name": "one", "revision": "v2"})
    assert refusal(other) == (409, "CONFLICT")
    assert other.json()["error"]["details"]["download"] == first["id"]


def test_download_waits_for_its_turn_by_priority_within_bounds(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    running = ask(admin, "running")
    low, high = ask(admin, "low", priority="low"), ask(admin, "high", priority="high")
    states = [shown(admin, each)["state"] for each in (running, low, high)]
    assert states == ["running", "queued", "queued"]
    assert refusal(admin.post(DOWNLOAD, json={**WORDS, "name": "many"})) == (
        429,
        "CONCURRENCY_LIMIT_EXCEEDED",
    )
    assert 'bitinglip_downloads{state="queued"} 2' in admin.get("/metrics").text
    admin.delete(f"{DOWNLOADS}/{running['id']}").raise_for_status()
    eventually(lambda: shown(admin, high)["state"] == "running")
    assert shown(admin, low)["state"] == "queued"
    assert admin.delete(f"{DOWNLOADS}/{low['id']}").status_code == 204
    assert events(admin, low)[-1][0] == "cancelled"
    page = admin.get(DOWNLOADS, params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == [high["id"], low["id"]]
    assert page["total"] >= 3


def test_download_that_was_cancelled_goes_on_where_it_stopped_unless_purged(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "again")
    await_bytes(admin, download)
    process = psutil.Process(puller_of(download))
    assert admin.delete(f"{DOWNLOADS}/{download['id']}").status_code == 204
    assert not process.is_running()
    assert shown(admin, download)["state"] == "cancelled"
    assert admin.delete(f"{DOWNLOADS}/{download['id']}").status_code == 204  # as it is
    asked = len(hub.far_headers)
    assert ask(admin, "again")["id"] == download["id"]
    eventually(lambda: any("Range" in each for each in hub.far_headers[asked:]))
    gone = admin.delete(f"{DOWNLOADS}/{download['id']}", params={"purge": "true"})
    assert gone.status_code == 204
    asked = len(hub.far_headers)
    let_go(hub)
    ask(admin, "again")
    assert events(admin, download)[-1][0] == "completed"
    assert not any("Range" in each for each in hub.far_headers[asked:])


def test_download_is_not_purged_while_another_waits_to_go_on_with_it(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "purged")
    await_bytes(admin, download)
    admin.delete(f"{DOWNLOADS}/{download['id']}").raise_for_status()
    hub.info_stalls = True
    try:
        ask(admin, "before", model_name="org/other")
        waiting = ask(admin, "waiting")
        assert waiting["state"] == "queued"
        purge = admin.delete(f"{DOWNLOADS}/{download['id']}", params={"purge": "true"})
        assert refusal(purge) == (409, "CONFLICT")
        admin.delete(f"{DOWNLOADS}/{waiting['id']}").raise_for_status()
        purge = admin.delete(f"{DOWNLOADS}/{download['id']}", params={"purge": "true"})
        assert purge.status_code == 204
    finally:
        hub.info_stalls = False


def test_download_whose_process_dies_fails_and_is_taken_up_again(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "killed")
    await_bytes(admin, download)
    os.kill(puller_of(download), signal.SIGKILL)
    name, last = events(admin, download)[-1]
    assert (name, last["error"]["code"]) == ("failed", "DOWNLOAD_FAILED")
    assert "ended from outside (SIGKILL), as the system does where" in last["error"]["message"]
    let_go(hub)
    assert ask(admin, "killed")["id"] == download["id"]
    assert events(admin, download)[-1][0] == "completed"


def test_download_waits_for_a_hub_that_is_down_and_asks_it_again(
    hub: FakeHub, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.down = True
    try:
        download = ask(admin, "patient")
        eventually(lambda: shown(admin, download)["waits_for"])
        found = shown(admin, download)
        assert (found["state"], "be reached" in found["waits_for"]) == ("queued", True)
        monkeypatch.setattr("model_store.hub.retries.FIRST_PAUSE", 0.01)
        assert ask(admin, "patient")["id"] == download["id"]  # which asks the hub at once
        eventually(lambda: shown(admin, download)["retry_at"] not in (None, found["retry_at"]))
    finally:
        hub.down = False
    assert events(admin, download)[-1][0] == "completed"


def test_download_waits_for_another_program_that_pulls_the_same(
    served: Served, admin: httpx.Client
) -> None:
    with served.services.store.pulling(REPO):
        download = ask(admin, "waiting")
        eventually(lambda: shown(admin, download)["waits_for"])
        assert shown(admin, download)["state"] == "running"
    assert events(admin, download)[-1][0] == "completed"


def test_download_that_the_hub_or_the_disk_refuses_says_what_to_do(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hub.gated = "manual"
    hub.info_faults.append((403, {"X-Error-Code": "GatedRepo"}))
    _, gated = events(admin, ask(admin, "gated"))[-1]
    assert gated["error"]["code"] == "DOWNLOAD_FAILED"
    assert "ask for access" in gated["error"]["message"]
    hub.gated = False
    hub.listing = hub.siblings()
    for each in hub.listing:
        if "lfs" in each:
            each["lfs"]["size"] = 1 << 60
    name, full = events(admin, ask(admin, "huge"))[-1]
    assert (name, full["error"]["code"]) == ("failed", "DISK_FULL")


def test_download_is_refused_at_once_on_a_full_disk(
    admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.disk.FLOOR_BYTES", 1 << 62)
    answer = admin.post(DOWNLOAD, json={**WORDS, "name": "full"})
    assert refusal(answer) == (507, "DISK_FULL")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"token": "hf_secret"}, 400, "UNSUPPORTED_PARAMETER"),
        ({"source": "elsewhere"}, 400, "INVALID_REQUEST"),
        ({"priority": "urgent"}, 400, "INVALID_REQUEST"),
        ({"model_name": "../evil"}, 400, "INVALID_REQUEST"),
        ({"model_name": "https://hub.example/a/b"}, 400, "INVALID_REQUEST"),
        ({"revision": "../x"}, 400, "INVALID_REQUEST"),
        ({"name": "demo"}, 409, "CONFLICT"),
    ],
)
def test_download_request_that_is_not_valid_is_refused(
    admin: httpx.Client, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = admin.post(DOWNLOAD, json={**WORDS, **fields})
    assert refusal(answer) == (status, code)
    assert "hf_secret" not in answer.text


def test_download_needs_the_scope_and_the_model_of_its_key(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        reader = served.headers("models:read")
        asked = client.post(DOWNLOAD, json=WORDS, headers=reader)
        assert refusal(asked) == (403, "INSUFFICIENT_SCOPE")
        assert client.get(DOWNLOADS, headers=reader).status_code == 403
        writer = served.headers("cluster:write")
        pickles = client.post(DOWNLOAD, json={**WORDS, "allow_pickles": True}, headers=writer)
        assert refusal(pickles) == (403, "INSUFFICIENT_SCOPE")
        missing = client.get(f"{DOWNLOADS}/dl_0", headers=writer)
        assert refusal(missing) == (404, "NOT_FOUND")
        assert client.delete(f"{DOWNLOADS}/dl_0", headers=writer).status_code == 404


def test_download_shows_to_keys_of_its_model_for_as_long_as_they_are_good(
    served: Served, hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    others = ask(admin, "not-theirs")
    fields = {"name": "narrow", "scopes": ["cluster:write"], "models": ["their-*"]}
    key = admin.post("/api/v1/keys", json=fields).json()
    headers = {"authorization": f"Bearer {key['key']}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as narrow:
        refused = narrow.post(DOWNLOAD, json={**WORDS, "name": "not-theirs-either"})
        assert refusal(refused) == (403, "MODEL_NOT_ALLOWED")
        assert refusal(narrow.get(f"{DOWNLOADS}/{others['id']}")) == (404, "NOT_FOUND")
        theirs = ask(narrow, "their-model")
        page = narrow.get(DOWNLOADS).json()
        assert ([each["id"] for each in page["data"]], page["total"]) == ([theirs["id"]], 1)
        with narrow.stream("GET", f"{DOWNLOADS}/{theirs['id']}/events") as answer:
            told = iter_events(answer.iter_lines())
            next(told)
            admin.delete(f"/api/v1/keys/{key['id']}").raise_for_status()
            let_go(hub)
            assert "completed" not in {name for name, _ in told}
    assert events(admin, theirs)[-1][0] == "completed"  # it is the server's by now


def puller_of(download: dict[str, Any]) -> int:
    """Return the process that pulls for a download; its arguments and environment hold nothing."""
    title = f"bitinglip download {download['id']}"
    for child in psutil.Process(os.getpid()).children():
        if child.cmdline()[-1:] == [title]:
            told = child.cmdline()
            with suppress(psutil.AccessDenied):  # only root may look
                told += child.environ().values()
            assert not any("hf_of_the_server" in each for each in told)
            return child.pid
    raise AssertionError("no process pulls")


def test_download_of_an_adapter_opens_no_model_that_its_key_is_not_for(
    served: Served, hub: FakeHub, admin: httpx.Client, tmp_path: Path
) -> None:
    lora = write_text_lora(llama(tmp_path / "base"), tmp_path / "lora", named="demo")
    kept, hub.files = hub.files, {each.name: each.read_bytes() for each in lora.iterdir()}
    ends = {}
    try:
        for name, globs in (("of-theirs", ["of-*"]), ("of-ours", ["of-*", "demo"])):
            fields = {"name": name, "scopes": ["cluster:write"], "models": globs}
            key = admin.post("/api/v1/keys", json=fields).json()["key"]
            headers = {"authorization": f"Bearer {key}"}
            with httpx.Client(base_url=served.url, headers=headers, timeout=60) as narrow:
                ends[name] = events(narrow, ask(narrow, name))[-1]
    finally:
        hub.files = kept
    name, told = ends["of-theirs"]
    assert (name, told["error"]["code"]) == ("failed", "INVALID_REQUEST")
    assert "the API key is for no such model" in told["error"]["message"]
    assert ends["of-ours"][0] == "completed", ends
    assert admin.get("/api/v1/models/of-ours").json()["type"] == "text"


def test_download_is_taken_off_the_list_when_it_is_forgotten(
    hub: FakeHub, admin: httpx.Client
) -> None:
    hold(hub)
    download = ask(admin, "forgotten")
    await_bytes(admin, download)
    both = {"purge": "true", "forget": "true"}
    path = f"{DOWNLOADS}/{download['id']}"
    assert admin.delete(path, params=both).status_code == 204
    assert refusal(admin.get(path)) == (404, "NOT_FOUND")
    listed = admin.get(DOWNLOADS, params={"limit": 100}).json()["data"]
    assert download["id"] not in {each["id"] for each in listed}
    assert refusal(admin.delete(path, params={"forget": "maybe"})) == (400, "INVALID_REQUEST")
