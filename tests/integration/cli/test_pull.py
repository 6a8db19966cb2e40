"""``models pull`` from a small hub of the test's own."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bitinglip.home import Home
from model_store.demo import make_demo_models
from model_store.store import ModelStore
from tests.support.cli_process import run, terminal

SHA = "a" * 40
REPO = "org/tiny"


class Hub:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.pause = 0.0  #: seconds between the pieces of a body
        self.tokens: set[str | None] = set()
        self.ranges: list[str] = []
        self.environ: dict[str, str] = {}

    def listing(self) -> dict[str, Any]:
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            for path, data in self.files.items()
        ]
        return {"id": REPO, "modelId": REPO, "sha": SHA, "gated": False, "siblings": siblings}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.tokens.add(self.headers.get("Authorization"))
        prefix = f"/{REPO}/resolve/{SHA}/"
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/v1"):
            self._send(200, json.dumps(self.hub.listing()).encode())
        elif path.startswith(prefix):
            self._file(self.hub.files[path.removeprefix(prefix)])
        else:
            self._send(404, b'{"error": "not found"}', [("X-Error-Code", "RepoNotFound")])

    def _file(self, data: bytes) -> None:
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1 if last else None]
            if not last:  # and no look at a file's first bytes
                self.hub.ranges.append(asked)
        self._send(206 if asked else 200, data)

    def _send(self, status: int, data: bytes, headers: Any = ()) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        step = 64 * 1024 if self.hub.pause else len(data) or 1
        try:
            for at in range(0, len(data), step):
                self.wfile.write(data[at : at + step])
                time.sleep(self.hub.pause)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    make_demo_models(store)
    folder = store.path("demo-text")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.environ = {"BITINGLIP_HUB__ENDPOINT": url, "no_proxy": "127.0.0.1", "HF_TOKEN": ""}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_pull_takes_a_model_under_another_name(hub: Hub, home: Path) -> None:
    pulled = run(home, "models", "pull", f"{REPO}@v1", "--name", "tiny", **hub.environ)
    assert (pulled.returncode, pulled.stdout) == (0, ""), pulled.stderr
    first, *_, last = pulled.stderr.splitlines()
    assert first == f"Pulling {REPO} into {home / 'models'}"
    assert last.startswith("Pulled tiny: text, ")
    assert hub.tokens == {None}
    shown = json.loads(run(home, "models", "show", "tiny", "--json").stdout)
    assert (shown["source"], shown["revision"]) == (f"hub:{REPO}", SHA)
    assert Home(home).models.is_dir()
    (entry,) = json.loads(run(home, "audit", "list", "--json").stdout)
    assert (entry["actor"], entry["action"], entry["target"]) == ("cli", "model.pull", "tiny")
    assert entry["after"]["revision"] == SHA


def test_pull_of_a_short_name_by_a_mirror_tells_its_plan_and_each_tenth(
    hub: Hub, home: Path
) -> None:
    home.mkdir()
    (home / "aliases.yaml").write_text(f"tiny: {REPO}\n")
    environ = {
        **hub.environ,
        "BITINGLIP_HUB__ENDPOINT": "http://127.0.0.1:9",
        "BITINGLIP_HUB__MIRRORS": f"[{hub.environ['BITINGLIP_HUB__ENDPOINT']}]",
        "BITINGLIP_HUB__PARALLEL": "1",
        "HF_TOKEN": "hf_secret",
    }
    pulled = run(home, "models", "pull", "tiny", **environ)
    assert pulled.returncode == 0, pulled.stderr
    lines = pulled.stderr.splitlines()
    assert lines[0] == f"tiny stands for {REPO}"
    assert "127.0.0.1:9 does not answer as a hub does; asked another." in lines
    assert any(
        line.startswith(f"Revision {SHA[:12]} (text): {len(hub.files)} files, ") for line in lines
    ), lines
    assert any(line.startswith(f"{REPO}: 100 %") for line in lines), lines
    assert lines[-1].startswith("Pulled tiny: text, ")
    assert hub.tokens == {None}, "a mirror gets no token"


def test_token_of_the_hub_comes_from_the_settings_file_or_the_environment(
    hub: Hub, home: Path
) -> None:
    token = home.parent / "token"
    token.touch(0o600)
    token.write_text("hf_from_file\n")
    environ = {**hub.environ, "HF_TOKEN": "hf_from_environment"}
    run(home, "models", "pull", REPO, **environ)
    assert hub.tokens == {"Bearer hf_from_environment"}
    hub.tokens.clear()
    environ["BITINGLIP_HUB__TOKEN_FILE"] = str(token)
    run(home, "models", "pull", REPO, "--name", "again", **environ)
    assert hub.tokens == {"Bearer hf_from_file"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no/such"], "no public repository no/such"),
        ([REPO, "--include", "*.nothing"], "--include"),
        (["../evil"], "name"),
        (["https://huggingface.co/Qwen/Qwen3-0.6B/tree/main"], "; write Qwen/Qwen3-0.6B."),
        ([REPO, "--name", "a b"], "name"),
    ],
)
def test_pull_that_is_refused_is_one_clear_line(
    hub: Hub, home: Path, arguments: list[str], told: str
) -> None:
    done = run(home, "models", "pull", *arguments, **hub.environ)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert told in last


def test_pull_that_was_interrupted_goes_on_where_it_stopped(hub: Hub, home: Path) -> None:
    hub.pause = 0.2
    with terminal(home, "models", "pull", REPO, **hub.environ) as pull:
        pull.wait_for(r"[1-9]\d*%|[1-9][\d.]*/\d+")
        pull.interrupt()
        pull.wait_for("The same command goes on from here")
        assert pull.wait_for_end() == 130
    assert "Traceback" not in pull.shown
    hub.pause = 0
    done = run(home, "models", "pull", REPO, **hub.environ)
    assert done.returncode == 0, done.stderr
    assert run(home, "models", "verify", REPO).returncode == 0
