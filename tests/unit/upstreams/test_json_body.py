"""The JSON of a request to another server."""

import asyncio
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bitinglip.upstreams.json_body import JsonBody
from bitinglip.upstreams.request import encoded, request_of, takes_long
from workers.engines.base import Refused
from workers.protocol import ChatMessage, Picture, Sampling, TextJob, Tool

SAID = ChatMessage("user", "a\0b\ud7ff", pictures=())
JOB = TextJob(id="j", messages=(SAID,), sampling=Sampling(max_tokens=1))


async def sent(body: JsonBody) -> bytes:
    data = b"".join([bytes(part) async for part in body.parts()])
    assert len(data) == await body.length()
    return data


def test_pictures_of_a_request_are_sent_whole_from_their_files(tmp_path: Path) -> None:
    files = {"one": b"\x89PNG" + bytes(range(256)) * 2048, "two": b"\xff\xd8\xff\0", "none": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pictures = tuple(Picture(str(tmp_path / name), 2) for name in files)
    job = replace(JOB, messages=(SAID, replace(SAID, pictures=pictures)))

    async def check() -> None:
        body = encoded(request_of(job, "m"))
        first = await sent(body)
        parts = json.loads(first)["messages"][1]["content"]
        kinds = ("png", "jpeg", "webp")
        assert [each["image_url"]["url"] for each in parts[1:-1]] == [
            f"data:image/{kind};base64,{b64encode(data).decode()}"
            for kind, data in zip(kinds, files.values(), strict=True)
        ]
        assert parts[0]["text"] == "a\0"
        assert first == await sent(body), "another server gets the same"

    asyncio.run(check())
    assert takes_long(job)


def test_long_request_is_sent_in_parts() -> None:
    async def check() -> None:
        text = "\N{GRINNING FACE}" * 500_000
        long = replace(JOB, messages=(ChatMessage("user", text),))
        body = encoded(request_of(long, "m"))
        assert max([len(part) async for part in body.parts()]) < 1 << 18
        assert json.loads(await sent(body))["messages"][0]["content"] == text

    asyncio.run(check())


def test_numbers_of_a_client_s_own_are_passed_on_as_they_are_or_refused() -> None:
    def asked(value: Any) -> JsonBody:
        tool = Tool(name="t", parameters={"const": value})
        return encoded(request_of(replace(JOB, tools=(tool,), template_kwargs={"k": value}), "m"))

    (tool,) = json.loads(asyncio.run(sent(asked(2**70))))["tools"]
    assert tool["function"]["parameters"] == {"const": 2**70}
    with pytest.raises(Refused, match="no form for"):
        asked(1e999)


@pytest.mark.parametrize(
    "long",
    [
        {"tools": (Tool(name="t"),)},
        {"template_kwargs": {"k": "v"}},
        {"messages": (ChatMessage("assistant", "", reasoning="a" * 100_000),)},
        {"messages": (ChatMessage("user", ""),) * 300},
        {"messages": None, "prompts": ((1,) * 100_000,)},
    ],
)
def test_request_that_is_long_in_whatever_it_has_is_made_beside_the_event_loop(
    long: dict[str, Any],
) -> None:
    assert not takes_long(JOB)
    assert takes_long(replace(JOB, **long))
