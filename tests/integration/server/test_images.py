"""Images from a real server: files and their owners, tasks, watchers, and a worker that dies."""

import base64
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.confinement import check_whole
from tests.support.server import Server, running_server
from tests.support.sse import SseEvent, events_of, iter_events
from tests.support.task_client import TASKS, await_status, new_client, task
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

ROUTE = "/api/v1/inference/image-generation"
ASKED = {"model": "demo-image", "prompt": "a red fox", "width": 64, "height": 64, "steps": 30}
SEEDED = {**ASKED, "seed": 7}


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def image_of(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["result"]["images"][0]["b64"])


def begin(client: httpx.Client, body: dict[str, Any]) -> str:
    answer = client.post(ROUTE, json={**body, "async": True})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def files_of(server: Server) -> set[str]:
    return {path.name for path in (server.home / "files").iterdir()}


def test_image_stream_tells_each_step_and_a_seed_gives_the_same_image(
    server: Server,
) -> None:
    with server.client() as client:
        streamed = events_of(client.post(ROUTE, json={**SEEDED, "stream": True}).text)
        again = client.post(ROUTE, json=SEEDED).json()
    steps = [data["step"] for name, data in streamed if name == "progress"]
    assert steps == list(range(1, 31))
    assert streamed[-1][0] == "completed"
    assert image_of(streamed[-1][1]) == image_of(again)
    assert pixels(image_of(again)).shape == (64, 64, 3)


def test_image_formats_hold_the_parameters(server: Server) -> None:
    with server.client() as client:
        for form in ("png", "jpeg", "webp"):
            answer = client.post(ROUTE, json={**SEEDED, "steps": 2, "format": form}).json()
            with Image.open(io.BytesIO(image_of(answer))) as found:
                assert found.format == form.upper()
                if form == "png":
                    assert found.info["parameters"].startswith("a red fox\nSteps: 2, ")
                else:
                    comment = found.getexif().get_ifd(0x8769)[0x9286]
                    assert "Seed: 7" in comment[8:].decode("utf-16-be")
            plain = client.post(
                ROUTE, json={**SEEDED, "steps": 2, "format": form, "metadata": False}
            ).json()
            with Image.open(io.BytesIO(image_of(plain))) as found:
                assert "parameters" not in found.info
                assert not found.getexif()


def test_edit_in_one_step_is_an_image(server: Server) -> None:
    """The default strength of 0.8 rounds to no step, and so does a low one with few steps."""
    source = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(source, "png")
    form = {"model": "demo-image", "prompt": "a red fox", "steps": "1"}
    with server.client() as client:
        edit = client.post("/v1/images/edits", data=form, files={"image": source.getvalue()})
        assert edit.status_code == 200, edit.text
        assert pixels(base64.b64decode(edit.json()["data"][0]["b64_json"])).shape == (64, 64, 3)
        image = base64.b64encode(source.getvalue()).decode()
        low = {**ASKED, "image": image, "steps": 2, "strength": 0.3}
        assert pixels(image_of(client.post(ROUTE, json=low).json())).shape == (64, 64, 3)
        none = client.post(ROUTE, json={**low, "strength": 1e-9})
    assert (none.status_code, none.json()["error"]["param"]) == (400, "strength")


def test_file_of_an_image_is_for_its_owner_only(server: Server) -> None:
    with server.client() as admin:
        with new_client(server, ["inference:image"]) as owner:
            body = {**SEEDED, "steps": 2, "output": "url", "n": 2}
            images = owner.post(ROUTE, json=body).json()["result"]["images"]
            urls = [image["url"] for image in images]
            found = owner.get(urls[1])
            assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
            assert pixels(found.content).shape == (64, 64, 3)
        assert admin.get(urls[0]).status_code == 200
        for scopes, code in [(["inference:image"], 404), (["inference:text"], 404)]:
            with new_client(server, scopes) as other:
                assert other.get(urls[0]).status_code == code
        assert admin.get("/api/v1/files/..%2fadmin.key").status_code == 404
    assert httpx.get(server.url + urls[0]).status_code == 401


def test_task_keeps_its_image_and_a_late_watcher_sees_every_step(server: Server) -> None:
    with server.client() as client:
        task_id = begin(client, {**SEEDED, "preview": True})
        await_status(client, task_id, "completed")
        ended = task(client, task_id)
        direct = client.post(ROUTE, json=SEEDED).json()
        assert image_of(ended) == image_of(direct)
        assert (ended["kind"], ended["usage"]["images"]) == ("image", 1)
        listed = client.get(TASKS, params={"model": "demo-image"}).json()["data"][-1]
        assert "result" not in listed, "lists hold no images"
    with open_watch(server.url, task_id, **server.headers) as socket:
        messages, code = heard(socket)
    assert code == 1000
    progress = [data for name, data in messages if name == "progress"]
    assert [data["step"] for data in progress] == list(range(1, 31))
    assert [data["step"] for data in progress if "preview" in data] == [5, 10, 15, 20, 25]
    assert image_of(messages[-1][1]) == image_of(direct)


def test_disconnect_of_the_client_frees_the_worker(server: Server) -> None:
    with server.client() as client:
        body = {**SEEDED, "steps": 150, "width": 256, "height": 256, "stream": True}
        with client.stream("POST", ROUTE, json=body) as stream:
            for _, data in iter_events(stream.iter_lines()):
                if data.get("step") == 5:
                    break
        eventually(server.idle)
        before = client.post(ROUTE, json=SEEDED).json()
        assert image_of(before) == image_of(client.post(ROUTE, json=SEEDED).json())


def test_batch_of_images_gives_what_each_is_alone(server: Server) -> None:
    bodies = [{**ASKED, "seed": seed, "prompt": f"fox {seed}"} for seed in range(3)]

    def ask(body: dict[str, Any]) -> Any:
        with server.client() as client:
            return pixels(image_of(client.post(ROUTE, json=body).json())).astype(int)

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(ask, bodies))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= 1


def test_retry_after_a_kill_at_step_20_costs_nothing_but_time(server: Server) -> None:
    body = {**SEEDED, "steps": 40, "width": 256, "height": 256}
    with server.client() as client:
        whole = image_of(client.post(ROUTE, json=body).json())
        killed = False
        events: list[SseEvent] = []
        with client.stream("POST", ROUTE, json={**body, "stream": True}) as stream:
            for event in iter_events(stream.iter_lines()):
                events.append(event)
                if event[1].get("step") == 20 and not killed:
                    killed = True
                    os.kill(server.worker("demo-image")["pid"], signal.SIGKILL)
        assert killed
        assert events[-1][0] == "completed"
        assert image_of(events[-1][1]) == whole
        steps = [data["step"] for name, data in events if name == "progress"]
        assert steps[-40:] == list(range(1, 41)), "it was drawn again from its start"
        assert client.get("/health").status_code == 200


def test_files_outlive_a_restart_and_unclaimed_ones_do_not_stay(tmp_path: Path) -> None:
    home = tmp_path / "home"
    body = {**SEEDED, "steps": 2}
    words = ("--set", "demo=always")
    with (
        running_server(home, *words, forked_workers=True) as first,
        first.client() as client,
    ):
        kept = client.post(ROUTE, json={**body, "output": "url"}).json()
        task_id = begin(client, body)
        await_status(client, task_id, "completed")
        whole = image_of(task(client, task_id))
        client.post(ROUTE, json=body)
        assert len(files_of(first)) == 3
    for path in (home / "files").iterdir():
        os.utime(path, (0, 0))
    with running_server(home, forked_workers=True) as second, second.client() as client:
        eventually(lambda: len(files_of(second)) == 2)
        assert client.get(kept["result"]["images"][0]["url"]).status_code == 200
        assert image_of(task(client, task_id)) == whole


def test_confinement_of_an_image_worker_is_whole(server: Server) -> None:
    with server.client() as client:
        client.post("/api/v1/models/demo-image/load").raise_for_status()
    check_whole(server.worker("demo-image"))


def test_image_without_a_size_has_the_model_s_own(server: Server) -> None:
    with server.client() as client:
        shown = client.get("/api/v1/models/demo-image").json()["supported_parameters"]
        assert (shown["width"]["default"], shown["height"]["default"]) == (256, 256)
        for size in ({}, {"size": "auto"}, {"size": None}):
            asked = {"model": "demo-image", "prompt": "a fox", "steps": 1, **size}
            made = client.post("/v1/images/generations", json=asked).json()
            assert made["size"] == "256x256"
            assert pixels(base64.b64decode(made["data"][0]["b64_json"])).shape == (256, 256, 3)
