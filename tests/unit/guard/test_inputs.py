"""Prompts of every kind of job pass the guard, by the field that holds them."""

import asyncio

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from bitinglip.errors import PersonalDataDetected
from bitinglip.guard.guard import Guard
from bitinglip.guard.inputs import texts_of, with_texts
from bitinglip.guard.modes import Modes, modes_of
from bitinglip.guard.watch import Watch
from bitinglip.settings import Settings
from bitinglip.settings.guard import Guard as GuardSettings
from bitinglip.settings.guard import TierGuard
from bitinglip.telemetry.health import Health
from workers import protocol

MAIL = "to john@example.com"
SAMPLING = protocol.Sampling(max_tokens=1)
JOBS: dict[str, protocol.Job] = {
    "prompt of a text": protocol.TextJob(id="j", prompt=MAIL, sampling=SAMPLING),
    "messages": protocol.TextJob(
        id="j",
        messages=(protocol.ChatMessage("system", "fine"), protocol.ChatMessage("user", MAIL)),
        sampling=SAMPLING,
    ),
    "images": protocol.ImageJob(
        id="j", prompt="a cat", negative_prompt=MAIL, width=8, height=8, steps=1, seeds=(1,),
        folder="f",
    ),
    "speech": protocol.SpeechJob(id="j", text=MAIL, seed=1, folder="f"),
    "transcription": protocol.TranscriptionJob(id="j", path="p", prompt=MAIL, max_seconds=1),
    "embeddings": protocol.EmbeddingJob(id="j", texts=("fine", MAIL)),
}  # fmt: skip
FIELDS = {
    "prompt of a text": "prompt",
    "messages": "messages[1].content",
    "images": "negative_prompt",
    "speech": "text",
    "transcription": "prompt",
    "embeddings": "input[1]",
}


def _guard() -> Guard:
    return Guard(Settings(), Watch(CollectorRegistry(), Health(), GuardSettings()))


@pytest.mark.parametrize("name", JOBS)
def test_prompt_is_redacted_in_every_kind_of_job(name: str) -> None:
    work = asyncio.run(_guard().checked(JOBS[name], Modes(input="redact")))
    assert texts_of(work)[FIELDS[name]] == "to [EMAIL]"
    others = {**texts_of(JOBS[name]), FIELDS[name]: "to [EMAIL]"}
    assert texts_of(work) == others


@pytest.mark.parametrize("name", JOBS)
def test_blocked_prompt_names_its_field(name: str) -> None:
    with pytest.raises(PersonalDataDetected) as refused:
        asyncio.run(_guard().checked(JOBS[name], Modes(input="block")))
    assert refused.value.param == FIELDS[name]
    assert refused.value.details == {"classes": ["email"], "count": 1}
    assert "john" not in refused.value.message


@pytest.mark.parametrize("mode", ["off", "report"])
def test_prompt_that_is_only_counted_is_the_same_job(mode: str) -> None:
    work = JOBS["messages"]
    assert asyncio.run(_guard().checked(work, Modes(input=mode))) is work  # type: ignore[arg-type]


def test_long_prompt_leaves_the_event_loop_its_turns() -> None:
    work = protocol.TextJob(id="j", prompt="4444-" * 200_000, sampling=SAMPLING)

    async def turns_meanwhile() -> int:
        check, turns = asyncio.create_task(_guard().checked(work, Modes(input="redact"))), 0
        while not check.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(turns_meanwhile()) >= 240  # one for each 4096 characters


def test_many_short_texts_leave_the_event_loop_its_turns() -> None:
    messages = (protocol.ChatMessage("user", "hi"),) * 1000
    work = protocol.TextJob(id="j", messages=messages, sampling=SAMPLING)

    async def turns_meanwhile() -> int:
        check, turns = asyncio.create_task(_guard().checked(work, Modes(input="redact"))), 0
        while not check.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(turns_meanwhile()) >= 60


def test_modes_are_the_tiers_or_the_general_ones_and_a_floor_makes_them_stricter() -> None:
    general = GuardSettings(input="redact", output="report")
    assert modes_of(general, TierGuard()) == Modes("redact", "report")
    assert modes_of(general, TierGuard(input="off")) == Modes("off", "report")
    assert modes_of(general, TierGuard(input="off"), "redact") == Modes("redact", "redact")
    assert modes_of(general, TierGuard(output="block"), "redact") == Modes("redact", "block")
    assert modes_of(GuardSettings(), TierGuard()) is None


def test_guard_reads_calls_and_reasoning_of_the_history() -> None:
    call = protocol.ToolCall(id="c", name="mail", arguments=f'{{"text": "{MAIL}"}}')
    turn = protocol.ChatMessage("assistant", "", tool_calls=(call,), reasoning=MAIL)
    job = protocol.TextJob(id="j", messages=(turn,), sampling=SAMPLING)
    texts = texts_of(job)
    assert set(texts) == {
        "messages[0].content",
        "messages[0].reasoning",
        "messages[0].tool_calls[0].function.arguments",
    }
    hidden = with_texts(job, {name: text.replace(MAIL, "x") for name, text in texts.items()})
    assert isinstance(hidden, protocol.TextJob)
    [shown] = hidden.messages or ()
    assert (shown.reasoning, shown.tool_calls[0].arguments) == ("x", '{"text": "x"}')


def test_guard_reads_query_and_documents_of_a_reranking() -> None:
    work = protocol.EmbeddingJob(id="1", texts=("one", "two"), query="q")
    assert texts_of(work) == {"query": "q", "documents[0]": "one", "documents[1]": "two"}
    changed = with_texts(work, {"query": "Q", "documents[1]": "TWO"})
    assert isinstance(changed, protocol.EmbeddingJob)
    assert (changed.query, changed.texts) == ("Q", ("one", "TWO"))


def test_guard_reads_what_templates_write_of_tools_names_and_variables() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": MAIL, "enum": ["a", MAIL]},
            "required": {"type": "integer", "default": 4111111111111111},
        },
        "required": ["type"],
    }
    job = protocol.TextJob(
        id="j",
        messages=(protocol.ChatMessage("user", "hi", MAIL),),
        tools=(protocol.Tool(name="f", description=MAIL, parameters=parameters),),
        template_kwargs={"documents": [{"type": MAIL, "number": 1}]},
        sampling=protocol.Sampling(max_tokens=1),
    )
    texts = texts_of(job)
    assert sorted(name for name, text in texts.items() if text == MAIL) == [
        "chat_template_kwargs.documents[0].type",
        "messages[0].name",
        "tools[0].function.description",
        "tools[0].function.parameters.properties.type.description",
        "tools[0].function.parameters.properties.type.enum[1]",
    ]
    assert "string" not in texts.values()
    assert with_texts(job, texts) == job
    hidden = with_texts(job, {name: text.replace(MAIL, "x") for name, text in texts.items()})
    assert MAIL not in msgspec.json.encode(hidden).decode()
