"""Pictures in messages, from a real server: on all surfaces, and what is refused by its place."""

import io
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.models.vision import make_vision_model, png
from tests.support.server import Server
from tests.support.wait import eventually

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
NATIVE = "/api/v1/inference/text-generation"
GREEDY = {"model": "seer", "temperature": 0}


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def image(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def client(
    shared_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Provide a client of the shared server, which has a vision model meanwhile."""
    folder = make_vision_model("llava", tmp_path_factory.mktemp("vision") / "model")
    with shared_server.client() as client:
        made = client.post("/api/v1/models/import", json={"path": str(folder), "name": "seer"})
        assert made.status_code == 201, made.text
        yield client
        assert client.delete("/api/v1/models/seer").status_code == 204


@pytest.fixture(scope="module")
def said(client: httpx.Client) -> str:
    """Return the model's answer to a picture between two texts."""
    messages = user(text("What is "), image(url(png(1))), text("?"))
    answer = client.post(CHAT, json={**GREEDY, "messages": messages, "max_tokens": 8})
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["message"]["content"]
    return found


def test_vision_is_a_capability_that_lists_tell(client: httpx.Client) -> None:
    shown = client.get("/api/v1/models/seer").json()
    assert "vision" in shown["capabilities"]
    listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    assert "vision" in listed["seer"]["capabilities"]
    assert "vision" not in listed["demo-text"]["capabilities"]


def test_vision_says_the_same_on_all_surfaces(client: httpx.Client, said: str) -> None:
    picture = url(png(1))
    native = client.post(
        NATIVE,
        json={
            **GREEDY,
            "messages": user(text("What is "), image(picture), text("?")),
            "max_tokens": 8,
        },
    )
    assert native.json()["result"]["text"] == said
    assert client.get("/api/v1/models/seer").json()["sequential"] == "it reads pictures"
    source = {"type": "base64", "media_type": "image/png", "data": picture.partition(",")[2]}
    blocks = [text("What is "), {"type": "image", "source": source}, text("?")]
    message = client.post(MESSAGES, json={**GREEDY, "messages": user(*blocks), "max_tokens": 8})
    assert message.json()["content"][0]["text"] == said
    counted = client.post(
        f"{MESSAGES}/count_tokens", json={"model": "seer", "messages": user(*blocks)}
    )
    assert counted.json()["input_tokens"] == message.json()["usage"]["input_tokens"]
    items = [
        {"type": "input_text", "text": "What is "},
        {"type": "input_image", "image_url": picture, "detail": "high"},
        {"type": "input_text", "text": "?"},
    ]
    response = client.post(RESPONSES, json={**GREEDY, "input": user(*items)})
    first = response.json()
    assert first["output"][0]["content"][0]["text"].startswith(said)
    kept = client.get(f"{RESPONSES}/{first['id']}/input_items").json()["data"][0]
    assert kept["content"][1]["image_url"] == picture
    again = {"input": "And now?", "previous_response_id": first["id"], "max_output_tokens": 4}
    later = client.post(RESPONSES, json={**GREEDY, **again}).json()
    assert later["usage"]["input_tokens"] > first["usage"]["total_tokens"]


@pytest.mark.parametrize("form", ["jpeg", "webp", "gif"])
def test_vision_takes_the_formats_that_clients_send(client: httpx.Client, form: str) -> None:
    picture = url(png(2, form=form.upper()), form)
    asked = {**GREEDY, "messages": user(image(picture)), "max_tokens": 4, "stream": True}
    answer = client.post(CHAT, json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().endswith("[DONE]")


def test_vision_of_a_batch_s_line_is_that_of_a_request(client: httpx.Client, said: str) -> None:
    messages = user(text("What is "), image(url(png(1))), text("?"))
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": CHAT,
        "body": {**GREEDY, "messages": messages, "max_tokens": 8},
    }
    sent = client.post(
        "/v1/files", files={"file": ("in.jsonl", json.dumps(line))}, data={"purpose": "batch"}
    ).json()
    asked = {"input_file_id": sent["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked).json()
    route = f"/v1/batches/{batch['id']}"
    eventually(lambda: client.get(route).json()["status"] == "completed")
    output = client.get(route).json()["output_file_id"]
    answered = client.get(f"/v1/files/{output}/content").json()
    assert answered["response"]["body"]["choices"][0]["message"]["content"] == said


def test_vision_leaves_no_file_behind(said: str, shared_server: Server) -> None:
    assert said
    uploads = Path(shared_server.home) / "uploads"
    eventually(lambda: not [each for each in uploads.iterdir() if each.name.startswith("task-")])


def _bomb() -> bytes:
    """Return a PNG of a few kilobytes that becomes 100 megapixels."""
    out = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(out, format="PNG", optimize=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("model", "parts", "code", "param"),
    [
        ("demo-text", [text("a"), image(url(png(1)))], "unsupported_parameter", "content[1]"),
        ("seer", [image("https://example.com/a.png")], "unsupported_parameter", ".image_url.url"),
        ("seer", [image("http://169.254.169.254/a")], "unsupported_parameter", ".image_url.url"),
        ("seer", [image("file:///etc/passwd")], "unsupported_parameter", ".image_url.url"),
        ("seer", [image("data:image/png;base64,%%%")], "invalid_value", "content[0]"),
        ("seer", [image("data:image/png;base64" + "," * 1000)], "invalid_value", "content[0]"),
        ("seer", [image("data:text/plain,hello")], "invalid_value", "content[0]"),
        ("seer", [image(url(b"<svg/>", "svg+xml"))], "invalid_value", "content[0]"),
        ("seer", [image(url(_bomb()))], "invalid_value", "content[0]"),
        ("seer", [image(url(png(1)))] * 17, "invalid_value", "messages"),
        ("seer", [image(url(png(1)[:-900]))], "invalid_value", "messages"),
        ("seer", [{"type": "video_url", "video_url": {"url": "data:"}}], "invalid_value", "type"),
    ],
    ids=[
        "text model",
        "https",
        "http",
        "file",
        "no base64",
        "commas",
        "text",
        "svg",
        "bomb",
        "too many",
        "cut off",
        "video",
    ],
)
def test_vision_refuses_by_its_place(
    client: httpx.Client, model: str, parts: list[dict[str, Any]], code: str, param: str
) -> None:
    asked = {"model": model, "messages": user(*parts), "max_tokens": 4}
    refused = client.post(CHAT, json=asked)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, code), error
    assert error["param"].endswith(param), error
    assert "0x" not in error["message"]


def test_vision_refuses_addresses_on_other_surfaces(client: httpx.Client) -> None:
    source = {"type": "url", "url": "https://example.com/a.png"}
    blocks = user({"type": "image", "source": source})
    refused = client.post(MESSAGES, json={**GREEDY, "messages": blocks, "max_tokens": 4})
    assert refused.json()["error"]["details"]["param"] == "messages[0].content[0]"
    item = {"type": "input_image", "image_url": "https://example.com/a.png"}
    refused = client.post(RESPONSES, json={**GREEDY, "input": user(item)})
    assert refused.json()["error"]["param"] == "input[0].content[0].image_url"
