"""Care of the store over HTTP: verify, repair, update, clean up, pin."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from model_store.store import ModelStore
from model_store.verification import Difference, differences
from tests.support.api_server import Served, serve
from tests.support.hub import REPO, FakeHub
from tests.support.large_models import WEIGHTS, large_hub, renew
from tests.support.sse import events_of

MODEL = f"/api/v1/models/{REPO}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("care"), hub={"endpoint": hub.url}) as served:
        with httpx.Client(base_url=served.url, headers=served.headers("admin")) as client:
            answer = client.post("/api/v1/models/download", json={"model_name": REPO})
            assert ended(client, answer)[0] == "completed"
        yield served


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60) as client:
        yield client


def ended(client: httpx.Client, answer: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Return the last event of a download that was accepted."""
    assert answer.status_code == 202, answer.text
    events = client.get(f"{answer.headers['location']}/events", timeout=60).content
    name, data = events_of(events)[-1]
    return name, data


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_verify_tells_what_differs_and_repairs_it_from_the_hub(
    served: Served, admin: httpx.Client
) -> None:
    whole = admin.post(f"{MODEL}/verify").json()
    assert whole == {"model": REPO, "whole": True, "differences": []}
    path = served.services.store.path(REPO) / WEIGHTS
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1] + b"?")
    damaged = admin.post(f"{MODEL}/verify", json={}).json()
    assert [(each["path"], each["what"]) for each in damaged["differences"]] == [
        (WEIGHTS, "content")
    ]
    name, repaired = ended(admin, admin.post(f"{MODEL}/verify", json={"repair": True}))
    assert (name, repaired["task"], repaired["error"]) == ("completed", "repair", None)
    assert repaired["changes"] == {"repaired": [WEIGHTS]}
    assert admin.post(f"{MODEL}/verify").json()["whole"]
    assert (served.services.store.path(REPO) / WEIGHTS).read_bytes() == data


def test_verify_of_a_model_is_refused_while_another_reads_its_files(
    admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def read_late(store: ModelStore, names: list[str]) -> dict[str, list[Difference]]:
        begun.set()
        assert go_on.wait(60)
        return differences(store, names)

    monkeypatch.setattr("bitinglip.api.admin.store_care.differences", read_late)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(admin.post, f"{MODEL}/verify")
        assert begun.wait(60)
        try:
            assert refusal(admin.post(f"{MODEL}/verify")) == (409, "CONFLICT")
        finally:
            go_on.set()
        assert first.result().json()["whole"]
    assert admin.post(f"{MODEL}/verify").json()["whole"]


def test_update_says_what_has_changed(hub: FakeHub, admin: httpx.Client) -> None:
    name, same = ended(admin, admin.post(f"{MODEL}/update"))
    assert (name, same["changes"]) == ("completed", {})
    before = hub.files
    renew(hub)
    hub.files, after = before, hub.files
    hub.commit("6" * 40, {**after, "LICENSE": b"do as you like"})
    name, told = ended(admin, admin.post(f"{MODEL}/update"))
    assert (name, told["error"]) == ("completed", None)
    assert told["changes"] == {"added": ["LICENSE"], "changed": [WEIGHTS]}
    assert admin.get(MODEL).json()["revision"] == "6" * 40


def test_update_is_refused_for_a_model_in_use_or_from_elsewhere(admin: httpx.Client) -> None:
    admin.post(f"{MODEL}/load").raise_for_status()
    assert refusal(admin.post(f"{MODEL}/update")) == (409, "MODEL_IN_USE")
    assert refusal(admin.post(f"{MODEL}/verify", json={"repair": True})) == (409, "MODEL_IN_USE")
    admin.post(f"{MODEL}/unload").raise_for_status()
    imported = admin.post("/api/v1/models/demo/update")
    assert refusal(imported) == (400, "INVALID_REQUEST")
    assert "did not come from the hub" in imported.json()["error"]["message"]


def test_clean_up_by_a_key_for_some_models_takes_and_tells_of_no_others(
    served: Served, admin: httpx.Client
) -> None:
    before = served.services.store.names()
    (served.services.store.partial / "removed-theirs").mkdir()
    for globs, planned in ((["paint*"], ["painter"]), (["none-*"], [])):
        fields = {"name": "narrow", "scopes": ["cluster:write"], "models": globs}
        key = admin.post("/api/v1/keys", json=fields).json()["key"]
        with httpx.Client(base_url=served.url, headers={"x-api-key": key}, timeout=60) as narrow:
            plan = narrow.post("/api/v1/models/gc", json={"max_bytes": 0}).json()
            assert [each["name"] for each in plan["data"]] == planned
            if not planned:
                everything = {"max_bytes": 0, "dry_run": False}
                assert narrow.post("/api/v1/models/gc", json=everything).json()["data"] == []
    assert served.services.store.names() == before


def test_clean_up_takes_unused_models_but_no_pinned_model(
    served: Served, admin: httpx.Client
) -> None:
    changed = admin.patch("/api/v1/models/demo", json={"pinned": True, "notes": "ours"}).json()
    assert (changed["pinned"], changed["notes"]) == (True, "ours")
    admin.post("/api/v1/models/org/deep/load").raise_for_status()
    plan = admin.post("/api/v1/models/gc", json={"max_bytes": 0}).json()
    assert plan["dry_run"]
    planned = {each["name"] for each in plan["data"] if each["kind"] == "model"}
    assert planned == {REPO, "painter"}
    assert len(served.services.store.names()) == 4
    done = admin.post("/api/v1/models/gc", json={"max_bytes": 0, "dry_run": False}).json()
    assert {each["name"] for each in done["data"] if each["kind"] == "model"} == planned
    rows = admin.get("/api/v1/models").json()["data"]
    assert [row["model_id"] for row in rows] == ["demo", "org/deep"]
    assert rows[0]["pinned"]
    assert rows[1]["last_used_at"]
    unpinned = admin.patch("/api/v1/models/demo", json={"pinned": False}).json()
    assert (unpinned["pinned"], unpinned["notes"]) == (False, "ours")


def test_clean_up_leaves_a_model_that_comes_into_use_while_others_are_removed(
    served: Served, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        wanted = {"model_name": REPO, "name": name}
        assert ended(admin, admin.post("/api/v1/models/download", json=wanted))[0] == "completed"
    remove = ModelStore.remove

    def load_another(store: ModelStore, name: str, **how: Any) -> bool:
        if name == "first":
            admin.post("/api/v1/models/second/load").raise_for_status()
        return remove(store, name, **how)

    monkeypatch.setattr(ModelStore, "remove", load_another)
    with httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60) as other:
        done = other.post("/api/v1/models/gc", json={"max_bytes": 0, "dry_run": False}).json()
    gone = {each["name"] for each in done["data"] if each["kind"] == "model"}
    assert "first" in gone
    assert "second" not in gone
    assert "second" in served.services.store.names()
