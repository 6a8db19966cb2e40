"""Runs examples of the shell as a reader does: as they stand, in a home, against one server.

Replaced are only the server's address, the ids of keys, and what starts a Python: ``bitinglip`` is
a fork of a process that has the product imported.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import audio, command_forks, fork_client
from tests.support import server as servers
from tests.support.doc_examples import ROOT
from tests.support.hub import FakeHub, hub_of
from tests.support.models import bark, whisper
from tests.support.models.text import make_tiny_model
from tests.support.server import Server, running_server
from tests.support.wait import eventually

ADDRESS = "http://127.0.0.1:8080"
QUESTION = "What is BitingLip?"
#: names that examples give models, and the repositories that they pull them from
NAMES = {"qwen": "Qwen/Qwen3-0.6B", "whisper": "openai/whisper-small", "bark": "suno/bark-small"}
#: examples that leave these open take a second instead of ten
_SETTINGS = (
    "workers.threads=1",
    "models.demo-image.image.steps=4",
    "models.qwen.sampling.max_tokens=16",
)
_IMPLIES = {"whisper": "transcribe"}  #: a word of examples that need a model without naming it
#: where examples look for the command, beside PATH
_ELSEWHERE = (".venv/bin", "bitinglip/bin")
_OUTPUT = re.compile(r"(?:-o|>) ([\w.-]+)$", re.MULTILINE)
#: programs of a desktop that examples use, and what stands in for them
_PROGRAMS = {"fortune": 'echo "Good luck."', "sudo": 'exec "$@"'}


class Desk:
    """Holds what a reader has: a home folder, a server that runs, and files to work on."""

    def __init__(self, folder: Path, server: Server, hub: FakeHub) -> None:
        self.folder, self.server, self._hub = folder, server, hub
        self.documents = folder / "documents"
        self._write_programs()
        self._write_documents()

    def _environ(self, home: Path) -> dict[str, str]:
        """Return the environment of what is run, without settings of the developer's."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("BITINGLIP")}
        path = f"{self.folder / 'bin'}:{kept['PATH']}"
        own = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        if servers.database_of is not None:
            file = home / ".bitinglip" / "bitinglip.db"
            own["BITINGLIP_DATABASE__URL"] = servers.database_of(file)
        return {**kept, **own, "BITINGLIP_HUB__ENDPOINT": self._hub.url}

    def run(self, script: str, home: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a script; it ends with the first command that fails."""
        before = 'curl() { command curl --fail-with-body "$@"; }\n'
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", before + self._here(script)],
            cwd=self.documents,
            env=self._environ(home or self.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def serve(self, arguments: list[str]) -> None:
        """Start a server as an example does, in a home and at a port of its own, and stop it."""
        rest = list(arguments)
        for flag in ("--home", "--port"):
            if flag in rest:
                del rest[rest.index(flag) : rest.index(flag) + 2]
        number = len(list(self.folder.glob("serve-*.log")))
        never = {"BITINGLIP_DEMO": "never"}
        with running_server(self.folder / f"serve-{number}", *rest, environ=never) as server:
            assert server.status()["in_flight"] == 0
            assert server.stop() == 0, server.log.read_text()

    @contextmanager
    def prepared(self, text: str) -> Iterator[None]:
        """Have the models, the worker and the download that an example names, and nothing of what
        it makes."""
        (self.folder / "bitinglip-backup.db").unlink(missing_ok=True)
        with self.server.client() as client:
            listed = client.get("/api/v1/models", params={"limit": 500}).json()["data"]
            had = {each["model_id"] for each in listed}
            for name, repo in NAMES.items():
                made = f"--name {name}" in text or f"models cancel {name}" in text
                wanted = re.search(rf"\b{name}\b", text) or (
                    name == "whisper" and "transcribe" in text
                )
                if made and name in had:
                    client.delete(f"/api/v1/models/{name}").raise_for_status()
                elif wanted and not made and name not in had:
                    done = self.run(f"bitinglip models pull {repo} --name {name} --allow-pickles")
                    assert done.returncode == 0, done
                if f"{name}/0" in text:
                    client.post(f"/api/v1/models/{name}/load").raise_for_status()
            if "models cancel qwen" in text:
                self._hub.beside[NAMES["qwen"]].slow = 1.0
                body = {"model_name": NAMES["qwen"], "name": "qwen"}
                client.post("/api/v1/models/download", json=body).raise_for_status()
            yield
            self._hub.beside[NAMES["qwen"]].slow = 0

    def check_outputs(self, text: str) -> None:
        """Check that the files which an example writes hold something."""
        for name in _OUTPUT.findall(text):
            assert (self.documents / name).stat().st_size, name

    def _here(self, script: str) -> str:
        script = script.replace(ADDRESS, self.server.url)
        if re.search(r"\bkeys \w+ ID\b", script):
            with self.server.client() as client:
                made = client.post("/api/v1/keys", json={"name": "example"})
            script = re.sub(r"\bID\b", made.json()["id"], script)
        return script

    def _write_programs(self) -> None:
        """Write commands for the shell to find; what is typed to a chat is piped in there."""
        run = f'exec {shlex.quote(sys.executable)} -m cli "$@"'
        if command_forks.can_run({}):
            words = (sys.executable, "-IS", fork_client.__file__, command_forks.address())
            run = f'exec {shlex.join(words)} "$@"'
        command = f'if [ "$1" = chat ]; then exec < "$HOME/question.txt"; fi\n{run}'
        (self.folder / "question.txt").write_text(QUESTION)
        folders = [self.folder / "bin", *(self.documents / each for each in _ELSEWHERE)]
        for folder in folders:
            folder.mkdir(parents=True)
            _write_program(folder / "bitinglip", command)
        for name, text in _PROGRAMS.items():
            _write_program(folders[0] / name, text)

    def _write_documents(self) -> None:
        """Write sounds and a model to work on, into a repository of git that has a change."""
        (self.documents / "deploy").symlink_to(ROOT / "deploy")
        make_tiny_model("llama", self.documents / "my-model")
        for name in ("meeting.m4a", "film.mp4", "hello.wav"):
            (self.documents / name).write_bytes(audio.voice(1.0))
        change = "git init -q && echo a > a.txt && git add a.txt && echo b > a.txt"
        subprocess.run(change, shell=True, cwd=self.documents, check=True)


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _with_context(model: Path, tokens: int) -> Path:
    """Let a model without a table of positions have a longer context."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": tokens}))
    return model


@contextmanager
def desk_of(folder: Path) -> Iterator[Desk]:
    """Serve the demo models, beside a hub that has tiny models under the names of large ones."""
    made = {
        NAMES["qwen"]: _with_context(make_tiny_model("llama", folder / "hub" / "qwen"), 1024),
        NAMES["whisper"]: whisper.make(folder / "hub" / "whisper", **whisper.LENIENT),
        NAMES["bark"]: bark.make(folder / "hub" / "bark"),
    }
    with (
        hub_of(made) as hub,
        running_server(
            folder / ".bitinglip",
            *(word for each in _SETTINGS for word in ("--set", each)),
            environ={"BITINGLIP_HUB__ENDPOINT": hub.url},
            forked_workers=True,
        ) as server,
    ):
        desk = Desk(folder, server, hub)
        yield desk
        eventually(server.idle)
