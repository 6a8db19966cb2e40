"""What the tests of the HTTP surface ask, and how they read the answers."""

import asyncio
import json
import time
from typing import Any

import httpx

from bitinglip.scheduling.event_log import EventLog, Loading, Queued
from bitinglip.scheduling.job import TextJob
from workers import protocol

TEXT = {"authorization": "Bearer k-inference:text"}
ADMIN = {"authorization": "Bearer k-admin"}
NATIVE = "/api/v1/inference/text-generation"
CHAT = "/v1/chat/completions"
PROMPT = {"model": "demo", "prompt": "hi"}
MESSAGES = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
MAX_BODY = 100_000


async def echo(event_log: EventLog) -> None:
    """What a healthy worker does; ``!`` in the prompt asks for trouble."""
    job = event_log.job
    assert isinstance(job, TextJob)
    prompt = job.prompt if job.prompt is not None else (job.messages or ())[-1].content
    event_log.put(Queued(1))
    event_log.put(Loading(0.5))
    if prompt == "!refuse":
        event_log.put(
            protocol.Failed(id=job.id, code="CONTEXT_LENGTH_EXCEEDED", message="too long")
        )
        return
    if prompt == "!wait":
        await asyncio.sleep(60)
    event_log.put(protocol.Started(id=job.id, prompt_tokens=1))
    for index, text in enumerate(["one", " two"]):
        if job.stream:
            event_log.put(protocol.TextDelta(id=job.id, text=text, index=index))
        await asyncio.sleep(0.01)
    while prompt == "!flood":
        event_log.put(protocol.TextDelta(id=job.id, text="x" * 100_000, index=2))
        await asyncio.sleep(0.001)
    if prompt == "!stall":
        await asyncio.sleep(60)
    if prompt == "!crash":
        event_log.put(protocol.Failed(id=job.id, code="WORKER_CRASHED", message="it died"))
    if prompt == "!cancel":
        event_log.put(protocol.Cancelled(id=job.id))
    event_log.put(
        protocol.TextDone(
            id=job.id, text="one two", finish_reason="length", prompt_tokens=1, completion_tokens=2
        )
    )


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert set(error) == {
        "code",
        "message",
        "type",
        "param",
        "details",
        "request_id",
        "timestamp",
    }
    return error


def events(text: str) -> list[tuple[str, Any]]:
    seen = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        seen.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return seen


def wait_until(true: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
