"""Batches as clients make them: an input file, and what became of each of its lines."""

import json
from typing import Any

import openai

from tests.support.wait import eventually

ENDED = ("completed", "failed", "cancelled", "expired")


def chat_line(custom_id: str, prompt: str = "hello", **body: Any) -> dict[str, Any]:
    """Return a line that asks the model ``demo`` for a turn of a conversation."""
    messages = [{"role": "user", "content": prompt}]
    return line(custom_id, "/v1/chat/completions", {"model": "demo", "messages": messages, **body})


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    """Upload lines, those that are bytes as they are; return the file's id."""
    rows = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    return client.files.create(file=("in.jsonl", b"\n".join(rows)), purpose="batch").id


def begin(client: openai.OpenAI, lines: list[Any], **asked: Any) -> str:
    """Begin a batch of lines; return its id."""
    given: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **asked}
    return client.batches.create(input_file_id=upload(client, lines), **given).id


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    """Wait until a batch has ended; return it."""
    eventually(lambda: client.batches.retrieve(batch_id).status in ENDED, 60)
    return client.batches.retrieve(batch_id)


def results(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    if file_id is None:
        return []
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
