"""Sends the requests, and reads server and card, for all steps of the part ``server``."""

import base64
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.card_memory import CardMemory
from benchmarks.gpu.http_api import Answer, Api, Event
from benchmarks.gpu.model_files import read_seconds
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.server_models import SIDE, ServedModels
from benchmarks.servers import BitingLip

LOAD_PATIENCE = 120.0
_SPARE_PATIENCE = 20.0
#: Seconds: the server reads the devices each second, and a worker tells its memory each second.
_LOOKS = {"real": 2.2, "tiny": 1.1}
_POLL = 0.05
_TOKENS = {"real": 256, "tiny": 32}
_FEW_TOKENS = 8
_STEPS = {"real": 8, "tiny": 2}
_SENTENCE = "The quick brown fox jumps over the lazy dog."


@dataclass(slots=True)
class ServerCheck:
    record: Recorder
    server: BitingLip
    memory: CardMemory
    models: ServedModels
    used: int  #: bytes in use on the card before the server started
    api: Api = field(init=False)
    _foreign: int = field(init=False, default=0)
    _used_before_load: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        assert self.server.key is not None
        self.api = Api(self.server.url, self.server.key)

    # ---- the books -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self.api.get("/api/v1/cluster/status")

    def device(self) -> dict[str, Any]:
        """Return the books of the device that is measured."""
        kind = "cuda" if self.memory.on_card else "cpu"
        found: dict[str, Any] = next(
            each for each in self.status()["devices"] if each["kind"] == kind
        )
        return found

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.get("/api/v1/workers")["data"]
        return found

    def loaded(self) -> set[str]:
        """Return the names of the models that have a worker."""
        return {each["model"] for each in self.workers() if each["model"]}

    def worker(self, name: str) -> dict[str, Any]:
        """Return the running worker of a model."""
        for each in self.workers():
            if each["model"] == name and each["state"] in ("ready", "busy"):
                return each
        raise AssertionError(f"no worker runs the model {name}: {self.workers()}")

    def pid(self, name: str) -> int:
        return int(self.worker(name)["pid"])

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def await_spare(self) -> None:
        """Wait until the spare has its imports: the next load is one of a server at rest."""
        deadline = time.monotonic() + (0 if self.record.tiny else _SPARE_PATIENCE)
        while time.monotonic() < deadline:
            if any(each["id"] == "spare" and each["state"] == "warm" for each in self.workers()):
                return
            time.sleep(_POLL)

    def look(self) -> None:
        """Wait until the server has read the devices again, and its workers have told their own."""
        time.sleep(_LOOKS[self.record.shape])

    # ---- models --------------------------------------------------------------------------------

    def load_at_once(self, names: Sequence[str]) -> None:
        """Load models at the same time: a rehearsal has no time to load one after another."""
        paths = [f"/api/v1/models/{name}/load" for name in names]
        began = time.perf_counter()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: self.api.post(path, patience=LOAD_PATIENCE), paths))
        seconds = time.perf_counter() - began
        self.record.figure("loads of all models at once", seconds, "s", note="before the others")

    def load(self, name: str, *, again: bool = False) -> None:
        """Load a model, and record the seconds beside the plain read of its files."""
        self._used_before_load = self.memory.used()
        self._foreign = self.device()["foreign_bytes"]
        answer = self.api.post(f"/api/v1/models/{name}/load", patience=LOAD_PATIENCE)
        if answer.body.get("status") != "ready":
            raise AssertionError(f"the load of {name} ended in {answer.body}")
        made = self.models.made[name]
        seconds = read_seconds(made.files)
        rate = f"{made.size / answer.seconds / 1e9:.2f} GB/s"
        note = f"{made.size / 1e9:.2f} GB of files: {rate}; reading them takes {seconds:.2f} s"
        self.record.figure(f"{name}: load{' again' * again}", answer.seconds, "s", note=note)
        if not again:
            read = made.size / seconds / 1e9
            self.record.figure(f"{name}: plain read of its files", read, "GB/s", note="page cache")

    def compare_books(self, name: str) -> None:
        """Record what the server says that a model takes beside what the driver says."""
        self.look()
        worker, device = self.worker(name), self.device()
        figure = self.record.figure
        figure(f"{name}: memory by the server", worker["memory_bytes"] / 1e9, "GB")
        reserved = sum(
            each["bytes"] for each in self.status()["reservations"] if each["model"] == name
        )
        figure(f"{name}: memory reserved for it", reserved / 1e9, "GB")
        source = "NVML" if self.memory.on_card else "RSS"
        told = self.memory.of(worker["pid"])
        value = "not told" if told is None else told / 1e9
        figure(f"{name}: memory of its process by {source}", value, "GB" if told else "")
        if not self.memory.on_card:
            return
        added = self.memory.used() - self._used_before_load
        figure(f"{name}: what the card's use rose by", added / 1e9, "GB", note="by NVML")
        figure(
            f"{name}: others' memory as the server sees it",
            device["foreign_bytes"] / 1e9,
            "GB",
            expected="< 0.3",
            note=f"before the load {self._foreign / 1e9:.2f}",
        )

    def use(self, name: str) -> None:
        """Send one request of the model's kind; raises AssertionError unless it succeeds."""
        {"text": self._stream, "image": self._draw, "speech": self._speak}[name]()

    # ---- requests ------------------------------------------------------------------------------

    def chat(self, name: str, tokens: int) -> Iterator[Event]:
        """Stream a chat of so many tokens."""
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return self.api.stream("/v1/chat/completions", body, LOAD_PATIENCE)

    def first_token(self, name: str) -> float:
        """Return seconds until the first token. Raises AssertionError for a stream that fails."""
        began = time.perf_counter()
        times = _times(self.chat(name, _FEW_TOKENS))
        return times[0] - began

    def picture(self, side: int, patience: float = LOAD_PATIENCE) -> Answer:
        """Ask for a picture; the answer may be an error."""
        body = {
            "model": "image",
            "prompt": "a fox",
            "width": side,
            "height": side,
            "steps": _STEPS[self.record.shape],
            "seed": 1,
        }
        return self.api.ask("POST", "/api/v1/inference/image-generation", body, patience)

    def _stream(self) -> None:
        tokens = _TOKENS[self.record.shape]
        self.first_token("text")
        began = time.perf_counter()
        times = _times(self.chat("text", tokens))
        first, rate = times[0] - began, tokens / (times[-1] - began)
        self.record.figure("text: first token of a chat", 1000 * first, "ms")
        note = f"{tokens} tokens, the first one's time too; one stream"
        self.record.figure("text: tokens of a chat", rate, "tokens/s", note=note)

    def _draw(self) -> None:
        side, steps = SIDE[self.record.shape], _STEPS[self.record.shape]
        answer = self.picture(side)
        if answer.status != 200:
            raise AssertionError(f"a picture was refused: {answer.body}")
        data = base64.b64decode(answer.body["result"]["images"][0]["b64"])
        note = f"{side} x {side}, {steps} steps, the first; {len(data) / 1e3:.0f} kB"
        self.record.figure("image: a picture", answer.seconds, "s", note=note)

    def _speak(self) -> None:
        body = {"model": "speech", "text": _SENTENCE, "seed": 1}
        answer = self.api.post("/api/v1/inference/text-to-speech", body, LOAD_PATIENCE)
        duration = answer.body["result"]["duration"]
        note = f"{duration:.1f} s of sound, the first"
        self.record.figure("speech: a sentence", answer.seconds, "s", note=note)


def _times(events: Iterator[Event]) -> list[float]:
    """Return when each piece of text came. Raises AssertionError for an error, or if none came."""
    times = []
    for event in events:
        if error := event.data.get("error"):
            raise AssertionError(f"a stream ended in {error}")
        choices = event.data.get("choices") or [{}]
        if choices[0].get("delta", {}).get("content"):
            times.append(event.at)
    if not times:
        raise AssertionError("a stream had no text")
    return times
