"""An engine whose answers all differ, and the requests that tests of the cache send to it.

So an answer that comes twice was cached, and one that came from a cache it may not come from shows.
"""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.support.api_server import Served
from tests.support.http_client import NATIVE
from workers import protocol

GREEDY = {"model": "demo", "temperature": 0, "top_p": 1, "max_tokens": 16}
WAIT_SECONDS = 60.0  #: until a test that does not end is given up


class Engine:
    """Answers with a number that no other answer has; prompts ask for faults and delays."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.gate = threading.Event()  #: what jobs of ``!gate`` wait for
        self.runs: Counter[str] = Counter()  #: by prompt

    async def __call__(self, job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
        if isinstance(job, protocol.ImageJob):
            async for event in self._paint(job):
                yield event
            return
        assert isinstance(job, protocol.TextJob)
        prompt = job.prompt or (job.messages or ())[-1].content
        self.runs[prompt] += 1
        yield protocol.Started(id=job.id, prompt_tokens=3)
        while prompt.startswith("!gate") and not self.gate.is_set():  # noqa: ASYNC110  a thread's
            await asyncio.sleep(0.01)
        words = [f"answer {next(self.numbers)}", " to it"]
        for index, text in enumerate(words if job.stream else []):
            yield protocol.TextDelta(id=job.id, text=text, index=index)
        if prompt.startswith("!fail") or (prompt == "!gate once" and self.runs[prompt] == 1):
            yield protocol.Failed(id=job.id, code="INFERENCE_FAILED", message="no")
            return
        if prompt == "!gate long":
            yield protocol.Failed(id=job.id, code="CONTEXT_LENGTH_EXCEEDED", message="too long")
            return
        yield protocol.TextDone(
            id=job.id,
            choices=(protocol.TextChoice(text="".join(words), finish_reason="stop"),),
            prompt_tokens=3,
            completion_tokens=2,
        )

    async def _paint(self, job: protocol.ImageJob) -> AsyncIterator[protocol.JobEvent]:
        self.runs[job.prompt] += 1
        name = protocol.image_file_name(job.id, 0, job.format)
        pixels = b"picture %d" % next(self.numbers)
        await asyncio.to_thread((Path(job.folder) / name).write_bytes, pixels)
        image = protocol.ImageFile(
            width=job.width,
            height=job.height,
            seed=job.seeds[0],
            format=job.format,
            bytes=len(pixels),
            filtered=job.prompt == "filtered",
        )
        yield protocol.ImageDone(
            id=job.id, images=(image,), steps=job.steps, scheduler="ddim", guidance_scale=7.5
        )


def ask(prompt: str, **fields: Any) -> dict[str, Any]:
    return {**GREEDY, "prompt": prompt, **fields}


def outcome(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-cache"]


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["result"]["text"])


def new_key(admin: httpx.Client, **fields: Any) -> tuple[str, dict[str, str]]:
    made = admin.post("/api/v1/keys", json={"name": "n", **fields}).json()
    return made["id"], {"authorization": f"Bearer {made['key']}"}


class Rush:
    """Sends equal requests at once, each over a connection of its own."""

    def __init__(self, served: Served, crowd: ThreadPoolExecutor) -> None:
        self._served = served
        self._crowd = crowd

    def post(
        self, body: dict[str, Any], key: dict[str, str] | None = None
    ) -> "Future[httpx.Response]":
        headers = key or self._served.headers("inference:text")
        url = self._served.url + NATIVE
        return self._crowd.submit(httpx.post, url, json=body, headers=headers, timeout=WAIT_SECONDS)

    @property
    def waiting(self) -> int:
        """Return how many wait for the flights, the leaders included."""
        return sum(each._waiting for each in self._served.services.cache._flights.values())


def joined(rush: Rush, count: int) -> Callable[[], bool]:
    return lambda: rush.waiting == count
