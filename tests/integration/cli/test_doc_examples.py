"""The examples in README and docs/ are run; what cannot run here is listed, and looked at."""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from bitinglip.settings import Settings
from bitinglip.settings_loader import dotted, every_setting, load_settings
from tests.support.certificates import make_certificate
from tests.support.cli_process import run
from tests.support.doc_examples import (
    NOT_RUN,
    PAGES,
    ROOT,
    Example,
    calls,
    check_command,
    commands,
    examples,
    reason_not_to_run,
    statements,
)
from tests.support.doc_runs import ADDRESS, Desk, desk_of

#: the tag after the fence, and what becomes of such examples here
LANGUAGES = {
    "sh",  # run, but for what ``NOT_RUN`` names; what it names is looked at
    "python",  # run
    "python not-installed",  # compiled: see clients.md for when it ran
    "yaml",  # settings of ours, which are loaded from a file
    "yaml other",  # of another program: looked at
    "json",  # run
    "nginx",  # tested by nginx where there is one
    "caddyfile",  # looked at
    "text",  # nothing to run
}
SHELL = examples("sh")
SETTINGS = {dotted(path) for path, _ in every_setting()}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk_of(tmp_path_factory.mktemp("examples")) as found:
        yield found


@pytest.fixture(scope="module")
def schema(desk: Desk) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{desk.server.url}/openapi.json").json()
    return found


def test_example_that_names_no_option_of_ours_is_found() -> None:
    for wrong in (["chat", "demo-text", "--nope"], ["no-command"], ["status", "too-much"]):
        with pytest.raises(Exception, match=r"nope|no-command|too-much|takes no"):
            check_command(wrong)


def test_examples_say_what_they_are() -> None:
    assert [each.id for each in examples() if each.language not in LANGUAGES] == []


def test_examples_that_are_not_run_are_there() -> None:
    every = [each for example in SHELL for each in statements(example)]
    assert [what for what in NOT_RUN if not any(re.match(what, each) for each in every)] == []


def test_examples_of_the_shell_use_commands_and_settings_that_exist() -> None:
    """Check those that are not run, too."""
    for example in SHELL:
        for arguments in commands(example):
            check_command(arguments)
            for flag, value in itertools.pairwise(arguments):
                if flag == "--set":
                    name = re.sub(r"^models\.\w+\.", "models.<name>.", value.partition("=")[0])
                    assert name in SETTINGS, (example.id, name)


def test_examples_call_routes_that_exist_with_bodies_that_fit(schema: dict[str, Any]) -> None:
    for call in itertools.chain.from_iterable(map(calls, SHELL)):
        operation = schema["paths"][call.path][call.method.lower()]
        if call.body is not None:
            content = operation["requestBody"]["content"]["application/json"]
            jsonschema.validate(
                call.body, {**content["schema"], "components": schema["components"]}
            )


#: with what the one before it has left in the home
RUN_BY_PAGE = {"backups.md"}
RUN = [
    each
    for each in SHELL
    if each.page not in RUN_BY_PAGE and not all(map(reason_not_to_run, statements(each)))
]


@pytest.mark.parametrize("example", RUN, ids=lambda each: each.id)
def test_example_of_the_shell_runs(example: Example, desk: Desk, tmp_path: Path) -> None:
    run_here = [each for each in statements(example) if not reason_not_to_run(each)]
    servers = [each for each in run_here if "bitinglip serve" in each]
    others = "\n".join(each for each in run_here if each not in servers)
    for words in commands(example._replace(text="\n".join(servers))):
        desk.serve(words[1:])
    if not others:
        return
    with desk.prepared(others):
        done = desk.run(others, tmp_path if "db migrate" in others else None)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
    desk.check_outputs(others)


def test_examples_of_backups_bring_back_what_was_there(desk: Desk, tmp_path: Path) -> None:
    """The server's home is not theirs: the second one is for a server that has stopped. What they
    bring back is a file of SQLite, whatever the database was."""
    backup, restore = (each for each in SHELL if each.page == "backups.md")
    home = tmp_path / ".bitinglip"
    assert run(home, "keys", "create", "--name", "before").returncode == 0
    assert desk.run(backup.text, tmp_path).returncode == 0
    assert run(home, "keys", "create", "--name", "after").returncode == 0
    (home / "secret.key").unlink()
    assert desk.run(restore.text, tmp_path).returncode == 0
    listed = run(home, "keys", "list", BITINGLIP_DATABASE__URL="null").stdout
    assert "before" in listed
    assert "after" not in listed


@pytest.mark.parametrize("example", examples("python"), ids=lambda each: each.id)
def test_example_of_python_is_answered(
    example: Example,
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BITINGLIP_API_KEY", desk.server.key)
    monkeypatch.setenv("HOME", str(desk.folder))
    exec(compile(example.text.replace(ADDRESS, desk.server.url), example.id, "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", examples("python not-installed"), ids=lambda each: each.id)
def test_example_for_another_package_is_python(example: Example) -> None:
    compile(example.text, example.id, "exec")


@pytest.mark.parametrize("example", examples("yaml"), ids=lambda each: each.id)
def test_example_of_settings_is_valid(example: Example, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(example.text)
    read = load_settings(config=file, home=tmp_path, environ={}, sets=[], flags={}).model_dump()
    asked = Settings.model_validate(yaml.safe_load(example.text)).model_dump()
    assert {name: each for name, each in asked.items() if read[name] != each} == {}


@pytest.mark.parametrize("example", examples("yaml other"), ids=lambda each: each.id)
def test_example_of_continue_has_what_it_requires(example: Example) -> None:
    told = yaml.safe_load(example.text)
    assert told.keys() >= {"name", "version", "schema", "models"}
    for model in told["models"]:
        assert model.keys() == {"name", "provider", "model", "apiBase", "apiKey", "roles"}
        assert set(model["roles"]) <= {"chat", "edit", "apply", "embed"}
        assert model["apiBase"] == f"{ADDRESS}/v1"


@pytest.mark.parametrize("example", examples("json"), ids=lambda each: each.id)
def test_example_of_an_n8n_node_is_answered(example: Example, desk: Desk) -> None:
    node = json.loads(example.text)
    answer = httpx.request(
        node["method"],
        node["url"].replace(ADDRESS, desk.server.url),
        json=json.loads(node["jsonBody"]),
        headers=desk.server.headers,
    )
    assert answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("example", examples("nginx", "caddyfile"), ids=lambda each: each.id)
def test_example_of_a_proxy_has_its_blocks_closed(example: Example) -> None:
    depth = 0
    for line in filter(None, map(str.strip, example.text.splitlines())):
        depth += line.endswith("{") - (line == "}")
        assert depth >= 0
        if example.language == "nginx":
            assert line[-1] in ";{}", line
    assert depth == 0


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx here")
@pytest.mark.parametrize("example", examples("nginx"), ids=lambda each: each.id)
def test_example_of_nginx_is_one_for_nginx(example: Example, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    listens = f"listen unix:{tmp_path}/socket"  # nginx opens what it listens on, for a test too
    text = re.sub(r"listen 443", listens, example.text)
    if listens not in text:
        text = re.sub(r"^server {", f"server {{ {listens};", text, flags=re.MULTILINE)
    text = re.sub(r"gateway-(\d)", r"127.0.0.\1", text)
    text = re.sub(r"(ssl_certificate) .*;", rf"\1 {certificate};", text)
    text = re.sub(r"(ssl_certificate_key) .*;", rf"\1 {key};", text)
    paths = "".join(
        f"{each}_temp_path {tmp_path}/{each}; "
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {paths}{text} }}"
    (tmp_path / "nginx.conf").write_text(whole)
    command = ["nginx", "-t", "-e", str(tmp_path / "log"), "-c", str(tmp_path / "nginx.conf")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 0, told.stderr


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
