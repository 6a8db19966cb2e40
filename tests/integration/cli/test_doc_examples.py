"""The examples in README and docs/ are run, or at least what they name is there."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from bitinglip.settings import Settings
from bitinglip.settings_loader import dotted, every_setting
from tests.support.api_server import ADMIN, Served, serve
from tests.support.doc_examples import (
    PAGES,
    ROOT,
    Example,
    calls,
    check_command,
    commands,
    examples,
)
from tests.support.model_folders import llama

#: the tag after the fence, and what becomes of such examples here
LANGUAGES = {
    "sh",  # calls of the demo text model are run; commands and other calls are checked
    "sh console",  # needs what is not here, such as Docker or root: commands are checked
    "python",  # run
    "python not-installed",  # compiled: LlamaIndex takes no openai of today beside it
    "yaml",  # settings of ours, which are validated
    "yaml other",  # of another program
    "json",
    "nginx",
    "caddyfile",
    "text",  # nothing to run
}
HERE = "http://127.0.0.1:8080"
SHELL = examples("sh", "sh console")
SETTINGS = {dotted(path) for path, _ in every_setting()}


def runs_here(example: Example) -> bool:
    """Return whether an example is nothing but calls that the demo text model answers."""
    asked = list(calls(example))
    models = {each.body["model"] for each in asked if each.body}
    others = [each for each in example.text.splitlines() if re.match(r"\S*bitinglip |make ", each)]
    return bool(asked) and models == {"demo-text"} and not others


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("examples")
    with serve(folder) as found:
        body = {"path": str(llama(folder / "demo-text")), "name": "demo-text"}
        answer = httpx.post(
            f"{found.url}/api/v1/models/import", json=body, headers=found.headers(ADMIN)
        )
        answer.raise_for_status()
        (folder / ".bitinglip").symlink_to(found.home.root)
        yield found


@pytest.fixture(scope="module")
def schema(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/openapi.json").json()
    return found


def test_example_that_names_no_option_of_ours_is_found() -> None:
    for wrong in (["chat", "demo-text", "--nope"], ["no-command"], ["status", "too-much"]):
        with pytest.raises(Exception, match=r"nope|no-command|too-much|takes no"):
            check_command(wrong)


def test_examples_say_what_they_are() -> None:
    assert [each.id for each in examples() if each.language not in LANGUAGES] == []


@pytest.mark.parametrize("example", SHELL, ids=lambda each: each.id)
def test_example_of_the_shell_is_one_and_uses_commands_that_exist(example: Example) -> None:
    subprocess.run(["bash", "-n"], input=example.text, text=True, check=True, timeout=30)
    for arguments in commands(example):
        check_command(arguments)
        for flag, value in itertools.pairwise(arguments):
            if flag == "--set":
                name = re.sub(r"^models\.\w+\.", "models.<name>.", value.partition("=")[0])
                assert name in SETTINGS, name


@pytest.mark.parametrize("example", SHELL, ids=lambda each: each.id)
def test_example_calls_routes_that_exist_with_bodies_that_fit(
    example: Example, schema: dict[str, Any]
) -> None:
    for call in calls(example):
        operation = schema["paths"][call.path][call.method.lower()]
        if call.body is not None:
            content = operation["requestBody"]["content"]["application/json"]
            jsonschema.validate(
                call.body, {**content["schema"], "components": schema["components"]}
            )


@pytest.mark.parametrize(
    "example", [each for each in examples("sh") if runs_here(each)], ids=lambda each: each.id
)
def test_example_of_curl_is_answered(example: Example, served: Served) -> None:
    text = example.text.replace(HERE, served.url).replace(".venv/bin/python", "python")
    text = re.sub(r"^curl ", "curl --fail-with-body ", text, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", text],
        env={"PATH": path, "HOME": str(served.home.root.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout.strip()


@pytest.mark.parametrize("example", examples("python"), ids=lambda each: each.id)
def test_example_of_python_is_answered(
    example: Example,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BITINGLIP_API_KEY", served.keys[ADMIN])
    monkeypatch.setenv("HOME", str(served.home.root.parent))
    exec(compile(example.text.replace(HERE, served.url), example.id, "exec"), {})
    # The server, which logs to the same place, may load the model first.
    assert capsys.readouterr().out.strip().splitlines()[-1] == "one two"


@pytest.mark.parametrize("example", examples("python not-installed"), ids=lambda each: each.id)
def test_example_for_another_package_is_python(example: Example) -> None:
    compile(example.text, example.id, "exec")


@pytest.mark.parametrize("example", examples("yaml"), ids=lambda each: each.id)
def test_example_of_settings_is_valid(example: Example) -> None:
    Settings.model_validate(yaml.safe_load(example.text))


@pytest.mark.parametrize("example", examples("yaml other"), ids=lambda each: each.id)
def test_example_of_continue_has_what_it_requires(example: Example) -> None:
    told = yaml.safe_load(example.text)
    assert told.keys() >= {"name", "version", "schema", "models"}
    for model in told["models"]:
        assert model.keys() == {"name", "provider", "model", "apiBase", "apiKey", "roles"}
        assert set(model["roles"]) <= {"chat", "edit", "apply", "embed"}
        assert model["apiBase"] == f"{HERE}/v1"


@pytest.mark.parametrize("example", examples("json"), ids=lambda each: each.id)
def test_example_of_an_n8n_node_is_answered(example: Example, served: Served) -> None:
    node = json.loads(example.text)
    answer = httpx.request(
        node["method"],
        node["url"].replace(HERE, served.url),
        json=json.loads(node["jsonBody"]),
        headers={"Authorization": f"Bearer {served.keys[ADMIN]}"},
    )
    assert answer.json()["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize("example", examples("nginx", "caddyfile"), ids=lambda each: each.id)
def test_example_of_a_proxy_has_its_blocks_closed(example: Example) -> None:
    depth = 0
    for line in filter(None, map(str.strip, example.text.splitlines())):
        depth += line.endswith("{") - (line == "}")
        assert depth >= 0
        if example.language == "nginx":
            assert line[-1] in ";{}", line
    assert depth == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in heads
            ]


def test_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [each.relative_to(ROOT).as_posix() for each in (ROOT / "docs").rglob("*.md")]
    assert [each for each in pages if f"({each})" not in text] == []
