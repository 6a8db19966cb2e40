"""LoRAs as things of the store: taken in, tied to their bases, used by name over HTTP."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.support.lora_files import write_image_lora, write_text_lora
from tests.support.server import Server

IMAGES = "/api/v1/inference/image-generation"
TUNED, BOLD = "org/tuned.v1", "styles/bold.v1"  #: names with dots, as modules have none


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """Provide a client of the shared server; the adapters are removed at the end."""
    with server.client() as client:
        yield client
        for name in (TUNED, BOLD, "orphan"):
            client.delete(f"/api/v1/models/{name}")


def import_model(client: httpx.Client, folder: Path, name: str, **more: Any) -> dict[str, Any]:
    body = {"path": str(folder), "name": name, **more}
    answer = client.post("/api/v1/models/import", json=body)
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def files(server: Server, model: str) -> Path:
    return server.home / "models" / model / "files"


def said(client: httpx.Client, model: str) -> str:
    body = {"model": model, "prompt": "one two", "max_tokens": 12, "temperature": 0}
    answer = client.post("/v1/completions", json={**body, "seed": 1})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def painted(client: httpx.Client, model: str, **more: Any) -> list[Any]:
    asked = {"model": model, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 3}
    answer = client.post(IMAGES, json={**asked, **more})
    assert answer.status_code == 200, answer.text
    image = base64.b64decode(answer.json()["result"]["images"][0]["b64"])
    pixels: list[Any] = np.asarray(Image.open(io.BytesIO(image))).tolist()
    return pixels


def test_adapter_of_a_text_model_is_used_by_its_name(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    lora = write_text_lora(files(server, "demo-text"), tmp_path / "lora", named="demo-text")
    shown = import_model(client, lora, TUNED)
    assert (shown["kind"], shown["type"], shown["base"]) == ("adapter", "text", "demo-text")
    base = client.get("/api/v1/models/demo-text").json()
    assert base["adapters"] == [TUNED]
    assert shown["max_context"] == base["max_context"]
    assert shown["capabilities"] == base["capabilities"]
    assert shown["parameters"] > base["parameters"]
    assert client.get(f"/v1/models/{TUNED}").json()["parent"] == "demo-text"
    plain = said(client, "demo-text")
    tuned = said(client, TUNED)
    assert tuned != plain
    assert said(client, "demo-text") == plain
    # The base's worker computes both, though the adapter came when it was loaded already.
    workers = client.get("/api/v1/workers").json()["data"]
    assert [each["model"] for each in workers if each["model"] in (TUNED, "demo-text")] == [
        "demo-text"
    ]
    shown = client.get(f"/api/v1/models/{TUNED}").json()
    assert (shown["status"], shown["merged"]) == ("ready", None)
    assert client.post(f"/api/v1/models/{TUNED}/unload").status_code == 200
    assert client.get("/api/v1/models/demo-text").json()["status"] == "ready"
    # Other files under the same name are another adapter.
    assert client.delete(f"/api/v1/models/{TUNED}").status_code == 204
    other = write_text_lora(
        files(server, "demo-text"), tmp_path / "other", named="demo-text", lora_alpha=-64
    )
    import_model(client, other, TUNED)
    assert said(client, TUNED) not in (plain, tuned)
    assert said(client, "demo-text") == plain


def test_adapter_that_does_not_fit_fails_alone(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    plain = said(client, "demo-text")
    lora = write_text_lora(files(server, "demo-text"), tmp_path / "lora", named="demo-text")
    weights = lora / "adapter_model.safetensors"
    save_file({name: each[:, :1] for name, each in load_file(weights).items()}, weights)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "r": 1}))
    import_model(client, lora, TUNED)
    body = {"model": TUNED, "prompt": "one two", "max_tokens": 3}
    refused = client.post("/v1/completions", json=body)
    assert refused.status_code == 502
    assert "another model than its base" in refused.json()["error"]["message"]
    assert said(client, "demo-text") == plain


def test_adapter_keeps_its_base_in_the_store(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    lora = write_text_lora(files(server, "demo-text"), tmp_path / "lora", named="/data/demo")
    import_model(client, lora, TUNED, base="demo-text")
    refused = client.delete("/api/v1/models/demo-text")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT")
    assert TUNED in refused.json()["error"]["message"]
    assert client.delete(f"/api/v1/models/{TUNED}").status_code == 204
    assert client.get("/api/v1/models/demo-text").status_code == 200


def test_adapter_without_its_base_says_what_is_missing(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    lora = write_text_lora(files(server, "demo-text"), tmp_path / "lora", named="org/other")
    shown = import_model(client, lora, "orphan")
    assert (shown["kind"], shown["base"], shown["type"]) == ("adapter", "org/other", "text")
    asked = {"model": "orphan", "prompt": "x"}
    answers = [
        client.post("/v1/completions", json=asked),
        client.post("/api/v1/inference/text-generation", json=asked),
        client.post("/api/v1/models/orphan/load"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    for answer in answers:
        assert "an adapter for org/other, which is not in the store" in answer.text
    error = answers[1].json()["error"]
    assert (error["code"], error["details"]["base"]) == ("INVALID_MODEL", "org/other")


def test_adapter_of_an_image_model_is_used_by_its_name_and_beside_its_base(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    lora = write_image_lora(files(server, "demo-image"), tmp_path / "lora", named="demo-image")
    shown = import_model(client, lora, BOLD)
    assert (shown["kind"], shown["type"], shown["base"]) == ("adapter", "image", "demo-image")
    assert shown["license"] == "mit"
    client.post("/api/v1/models/demo-image/unload")  # it reads its LoRAs as it is loaded
    plain = painted(client, "demo-image")
    styled = painted(client, "demo-image", loras=[{"name": BOLD}])
    assert styled != plain
    assert painted(client, BOLD) == styled
    assert painted(client, BOLD, loras=[{"name": BOLD, "scale": 0}]) == plain
