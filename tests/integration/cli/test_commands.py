"""The commands, run as processes: against a small server of the contract, and without any."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.support.cli_process import run
from tests.support.stub_api import KEY, KEY_RECORD, WORKER, Stub, stub_api


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def stub(home: Path) -> Iterator[Stub]:
    with stub_api(home) as running:
        yield running


# ---- with a server -------------------------------------------------------------------------------


def test_models_are_listed_as_a_table_and_as_json(stub: Stub) -> None:
    table = run(stub.home, "models", "list")
    assert table.returncode == 0
    head, first, second = table.stdout.splitlines()
    assert " ".join(head.split()) == "NAME TYPE ENGINE SIZE PARAMETERS CONTEXT USED FITS STATUS"
    assert first.split()[:7] == ["demo-text", "text", "text", "1.2", "MB", "135M", "2048"]
    assert first.split()[-2:] == ["-", "available"]
    assert second.startswith("org/painter")
    rows = json.loads(run(stub.home, "models", "list", "--json").stdout)
    assert [row["model_id"] for row in rows] == ["demo-text", "org/painter"]
    assert not any("supported_parameters" in row for row in rows)  # `show` has them


def test_models_show_prints_text_as_text(stub: Stub) -> None:
    shown = run(stub.home, "models", "show", "org/painter").stdout
    assert "[bold]a model[/bold][31m" in shown
    assert "\x1b" not in shown
    assert json.loads(run(stub.home, "models", "show", "org/painter", "--json").stdout)["type"] == (
        "image"
    )


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("models load demo-text", {"model_id": "demo-text", "status": "ready"}),
        ("models unload demo-text", {"model_id": "demo-text"}),
        ("models remove demo-text", {"model_id": "demo-text", "removed": True}),
        ("workers restart demo-text/0", {"id": "demo-text/0", "state": "restarting"}),
        ("workers stop demo-text/0", {"id": "demo-text/0", "state": "stopped"}),
        ("keys revoke AbC123", {"id": "AbC123", "revoked": True}),
    ],
)
def test_json_says_what_a_command_has_done(
    stub: Stub, arguments: str, facts: dict[str, object]
) -> None:
    told = CliRunner().invoke(app, [*arguments.split(), "--home", str(stub.home), "--json"])
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert {name: found[name] for name in facts} == facts


@pytest.mark.parametrize(
    ("arguments", "method", "path"),
    [
        ("models load demo-text", "POST", "/api/v1/models/demo-text/load"),
        ("models unload demo-text", "POST", "/api/v1/models/demo-text/unload"),
        ("models remove demo-text", "DELETE", "/api/v1/models/demo-text"),
        ("workers restart demo-text/0", "POST", "/api/v1/workers/demo-text/0/restart"),
        ("workers stop demo-text/0", "DELETE", "/api/v1/workers/demo-text/0"),
        ("keys revoke AbC123", "DELETE", "/api/v1/keys/AbC123"),
    ],
)
def test_commands_that_change_something_ask_the_server(
    stub: Stub, arguments: str, method: str, path: str
) -> None:
    done = run(stub.home, *arguments.split())
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert (method, path, None) in stub.asked


def test_import_sends_the_absolute_path(stub: Stub) -> None:
    (stub.home.parent / "mine").mkdir()
    done = run(stub.home, "models", "import", "mine", "--name", "org/mine")
    assert done.returncode == 0, done.stderr
    [body] = stub.bodies("/api/v1/models/import")
    path = str(stub.home.parent / "mine")
    assert body == {"path": path, "name": "org/mine", "allow_pickles": False}
    missing = run(stub.home, "models", "import", "nothing", "--name", "x")
    assert missing.returncode == 1
    assert "is not a folder" in missing.stderr


def test_keys_are_made_listed_and_revoked_through_the_server(stub: Stub) -> None:
    options = "--name ann --tier pro --scope inference:text --expires 30d"
    made = run(stub.home, "keys", "create", *options.split())
    assert made.stdout == "blk_live_secret\n"
    assert "AbC123" in made.stderr
    body = {"name": "ann", "tier": "pro", "scopes": ["inference:text"], "expires": "30d"}
    assert stub.bodies("/api/v1/keys") == [body]
    as_json = run(stub.home, "keys", "create", "--name", "ann", "--json")
    assert json.loads(as_json.stdout)["key"] == "blk_live_secret"
    assert json.loads(run(stub.home, "keys", "list", "--json").stdout) == [KEY_RECORD]
    assert "inference:text" in run(stub.home, "keys", "list").stdout
    assert "active" in run(stub.home, "keys", "show", "AbC123").stdout


def test_status_and_workers(stub: Stub) -> None:
    shown = run(stub.home, "status")
    assert shown.returncode == 0
    assert f"BitingLip 9.9 at {stub.url}: running, degraded; 1 in flight, 3 queued" in shown.stdout
    assert "database: does not answer" in shown.stdout
    found = json.loads(run(stub.home, "status", "--json").stdout)
    assert found["queued"] == 3
    assert found["health"]["status"] == "degraded"
    row = run(stub.home, "workers", "list").stdout.splitlines()[1].split()
    assert row[:8] == ["demo-text/0", "demo-text", "ready", "4242", "cpu", "3.0", "GB", "1"]
    assert json.loads(run(stub.home, "workers", "list", "--json").stdout) == [WORKER]


def test_generate_writes_only_the_text_to_stdout(stub: Stub) -> None:
    options = "--max-tokens 7 --temperature 0 --top-p 0.5 --seed 3 --stop END"
    done = run(stub.home, "generate", "text", "demo-text", "Say it", *options.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world\n", "")
    assert stub.bodies() == [
        {
            "model": "demo-text",
            "prompt": "Say it",
            "max_tokens": 7,
            "temperature": 0.0,
            "top_p": 0.5,
            "seed": 3,
            "stop_sequences": ["END"],
            "stream": True,
        }
    ]


def test_generate_writes_several_answers_under_their_numbers(stub: Stub) -> None:
    texts = ["Hello, world", "Bye"]
    stub.choices = [
        {"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(texts)
    ]
    options = ["-n", "2", "--min-tokens", "3", "--typical-p", "0.5"]
    done = run(stub.home, "generate", "text", "demo-text", "x", *options)
    assert (done.returncode, done.stdout) == (0, "[1] Hello, world\n[2] Bye\n")
    [body] = stub.bodies()
    assert (body["n"], body["min_tokens"], body["typical_p"]) == (2, 3, 0.5)


def test_generate_reads_a_piped_prompt(stub: Stub) -> None:
    run(stub.home, "generate", "text", "demo-text", stdin="one\ntwo")
    run(stub.home, "generate", "text", "demo-text", "-", stdin=b"\xff\x00")
    assert [body["prompt"] for body in stub.bodies()] == ["one\ntwo", "\ufffd\x00"]


def test_generate_to_a_file_holds_exactly_what_the_model_wrote(stub: Stub) -> None:
    stub.pieces = ["\x1b[31m", "red\r\n"]
    done = run(stub.home, "generate", "text", "demo-text", "x", "-o", "out.txt")
    assert (done.returncode, done.stdout) == (0, "")
    assert (stub.home.parent / "out.txt").read_bytes() == b"\x1b[31mred\r\n"
    assert run(stub.home, "generate", "text", "demo-text", "x").stdout == "[31mred\n"
    answer = json.loads(run(stub.home, "generate", "text", "demo-text", "x", "--json").stdout)
    assert answer["result"]["text"] == "\x1b[31mred\r\n"


def test_chat_with_a_piped_prompt_is_one_turn(stub: Stub) -> None:
    done = run(stub.home, "chat", "demo-text", "--system", "Be short.", stdin="Hi\nyou")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world\n", "")
    [body] = stub.bodies()
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi\nyou"},
    ]


def test_output_encoding_that_lacks_characters_is_no_crash(stub: Stub) -> None:
    stub.pieces = ["a🚀\u2028x"]
    done = run(stub.home, "generate", "text", "demo-text", "x", PYTHONIOENCODING="latin-1")
    assert done.stdout == "a??x\n"


# ---- when it goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["chat", "generate text"])
def test_error_of_an_answer_is_one_line_and_exit_code_1(stub: Stub, command: str) -> None:
    stub.failure = {"code": "OUT_OF_MEMORY", "message": "The device ran out of memory."}
    done = run(stub.home, *command.split(), "demo-text", stdin="x")
    assert done.returncode == 1
    assert done.stdout == "Hello, world\n"
    assert done.stderr == "Error: The device ran out of memory.\n"


def test_stream_that_breaks_off_is_a_failure(stub: Stub) -> None:
    stub.cuts_off = True
    done = run(stub.home, "generate", "text", "demo-text", "x")
    assert done.returncode == 1
    assert "broke off" in done.stderr


def test_model_that_is_unknown_lists_the_known_ones(stub: Stub) -> None:
    done = run(stub.home, "generate", "text", "nope", "x")
    assert done.returncode == 1
    assert done.stderr == "Error: No such model. Available: demo-echo, demo-text.\n"


def test_api_key_comes_from_the_environment_first(stub: Stub) -> None:
    wrong = run(stub.home, "models", "list", BITINGLIP_API_KEY="blk_wrong")
    assert wrong.returncode == 1
    assert "does not accept the API key" in wrong.stderr
    Path(stub.home, "admin.key").unlink()
    assert "BITINGLIP_API_KEY" in run(stub.home, "models", "list").stderr
    assert run(stub.home, "models", "list", BITINGLIP_API_KEY=KEY).returncode == 0


def test_url_of_another_server_is_used(stub: Stub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done = run(other, "models", "list", BITINGLIP_URL=stub.url + "/", BITINGLIP_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "demo-text" in done.stdout
    gone = run(stub.home, "status", BITINGLIP_URL="http://127.0.0.1:1")
    assert gone.returncode == 1
    assert "no server answers at http://127.0.0.1:1" in gone.stderr
    assert "BITINGLIP_URL is" in run(stub.home, "status", BITINGLIP_URL="localhost:80").stderr


def test_admin_key_of_this_home_is_not_sent_elsewhere(stub: Stub) -> None:
    """``127.1`` is this machine too, but the client does not know it."""
    url = stub.url.replace("127.0.0.1", "127.1")
    done = run(stub.home, "models", "list", BITINGLIP_URL=url, no_proxy="127.1")
    assert done.returncode == 1
    assert "wants an API key" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "chat demo-text",
        "workers stop w/0",
        "models load m",
    ],
)
def test_server_that_is_missing_is_said_with_how_to_start_one(home: Path, arguments: str) -> None:
    done = run(home, *arguments.split())
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: no server is running on {home}; start one with `bitinglip serve`\n"
    )
    assert not home.exists()


def test_model_names_lead_to_no_other_path(stub: Stub) -> None:
    done = run(stub.home, "models", "remove", "../keys/AbC123")
    assert done.returncode == 1
    assert "not a valid name" in done.stderr
    assert stub.asked == []


def test_output_that_cannot_be_written_is_refused_before_any_work(stub: Stub) -> None:
    (stub.home.parent / "sound.wav").touch()
    folder = stub.home.parent / "folder.txt"
    folder.mkdir()
    for arguments in (
        ["generate", "text", "demo-text", "x", "-o", "no/such/a.txt"],
        ["generate", "text", "demo-text", "x", "-o", "folder.txt"],
        ["generate", "image", "org/painter", "x", "-o", "no/such/a.png"],
        ["generate", "speech", "org/speaker", "x", "-o", "no/such/a.wav"],
        ["transcribe", "sound.wav", "-m", "org/listener", "-o", "no/such/a.txt"],
    ):
        done = run(stub.home, *arguments)
        assert done.returncode == 1
        assert f"Error: {arguments[-1]} cannot be written: " in done.stderr
    assert stub.asked == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("chat ", ["demo-text"]),
        ("generate image ", ["org/painter"]),
        ("keys create --scope inference:t", ["inference:text"]),
    ],
)
def test_completion_knows_models_and_scopes(stub: Stub, words: str, found: list[str]) -> None:
    typed = {"COMP_WORDS": f"bitinglip {words}", "COMP_CWORD": str(len(f"{words}.".split()))}
    asked = {"_BITINGLIP_COMPLETE": "complete_bash", "BITINGLIP_URL": stub.url}
    done = run(stub.home, **typed, **asked)
    assert sorted(done.stdout.split()) == found, done.stderr


# ---- settings ------------------------------------------------------------------------------------


def test_config_check_tells_every_problem_with_its_line(home: Path) -> None:
    file = home.parent / "config.yaml"
    file.write_text("server:\n  prt: 1\n  host: 3\nqueue:\n  max_waiting: 1\n")
    done = run(home, "config", "check", "--set", "logging.level=loud")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert any("config.yaml:2:" in line and "server.port" in line for line in lines)
    assert any("config.yaml:3:" in line and "server.host" in line for line in lines)
    assert any("--set logging.level=loud" in line for line in lines)
    file.write_text("server:\n  port: 1234\n")
    assert run(home, "config", "check").returncode == 0
    assert run(home, "config", "check", "--config", "none.yaml").returncode == 1


def test_config_show_prints_what_will_hold(home: Path) -> None:
    import yaml

    shown = run(home, "config", "show", "--set", "server.port=1", BITINGLIP_QUEUE__MAX_WAITING="9")
    values = yaml.safe_load(shown.stdout)
    assert (values["server"]["port"], values["queue"]["max_waiting"]) == (1, 9)
    assert values["residency"]["keep_alive"] == 1800
    assert shown.stderr == ""
    assert json.loads(run(home, "config", "show", "--json").stdout)["server"]["port"] == 8080


def test_serve_refuses_bad_settings_before_anything_starts(home: Path) -> None:
    done = run(home, "serve", "--set", "server.prt=1", "--set", "wrong")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert not home.exists()


def test_serve_refuses_a_home_in_use(stub: Stub) -> None:
    done = run(stub.home, "serve", "--port", "0")
    assert done.returncode == 1
    assert "is in use by" in done.stderr


# ---- doctor --------------------------------------------------------------------------------------


def test_doctor_on_a_fresh_machine(home: Path) -> None:
    done = run(home, "doctor", "--json", BITINGLIP_SERVER__PORT="0")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "gpu", "torch", "config", "home", "disk", "port"} <= set(findings)
    assert {"database", "models"} <= set(findings)
    wrong = [finding for finding in findings.values() if finding["level"] == "error"]
    assert done.returncode == bool(wrong)
    assert not home.exists()


@pytest.mark.sqlite  # whose file is damaged
def test_doctor_finds_what_is_wrong_and_says_what_to_do(home: Path, stub: Stub) -> None:
    sick = home.parent / "sick"
    sick.mkdir()
    (sick / "bitinglip.db").write_bytes(b"")
    port = stub.url.rpartition(":")[2]
    done = run(sick, "doctor", BITINGLIP_SERVER__PORT=port)
    assert done.returncode == 1
    assert re.search(rf"FAIL +port +cannot listen on 127\.0\.0\.1:{port}", done.stdout)
    assert re.search(r"FAIL +database", done.stdout)
    bad = run(sick, "doctor", "--json", BITINGLIP_SERVER__PROT="1")
    found = [finding for finding in json.loads(bad.stdout) if finding["check"] == "config"]
    assert "server.port" in found[0]["detail"]
    assert found[0]["advice"]
