"""The guard looks at each choice, and in it at reasoning and calls of tools, by itself."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bitinglip.errors import InvalidRequest, PersonalDataDetected
from bitinglip.guard.checked import TextCheck
from bitinglip.guard.guard import Guard
from bitinglip.guard.inputs import texts_of, with_texts
from bitinglip.guard.modes import Modes
from bitinglip.guard.text_output import TextOutput
from bitinglip.guard.watch import Watch
from bitinglip.guard.words import WordList
from bitinglip.settings import Settings
from bitinglip.settings.guard import Guard as GuardSettings
from bitinglip.settings.guard import Mode, PersonalData
from bitinglip.telemetry.health import Health
from workers import protocol

WORK = protocol.TextJob(id="t", prompt="p", sampling=protocol.Sampling(max_tokens=9), n=3)
MAIL, SHOWN = "to john@example.com now", "to [EMAIL] now"
CALL = '{"to": "john@example.com"}'


def guard(mode: Mode = "redact", *, stream: bool = True) -> TextOutput:
    watch = Watch(CollectorRegistry(), Health(), GuardSettings())
    modes, kinds = Modes(output=mode), frozenset[PersonalData]({"card", "email"})
    work = msgspec.structs.replace(WORK, stream=stream)
    return TextOutput(work, lambda: TextCheck(kinds, modes, WordList(()), watch))


def call(arguments: str, name: str = "send") -> protocol.ToolCallDelta:
    return protocol.ToolCallDelta(index=0, id="c", name=name, arguments=arguments)


def deltas(cuts: Sequence[int]) -> list[protocol.TextDelta]:
    """Return three texts in pieces that alternate: content, reasoning, a call's arguments."""
    events = []
    for index, (start, end) in enumerate(zip((0, *cuts), (*cuts, 99), strict=True)):
        text, said = MAIL[start:end], CALL[start:end]
        calls = (call(said),) if said else ()
        events += [
            protocol.TextDelta(id="t", text=text, index=index, choice=0),
            protocol.TextDelta(id="t", text="", index=index, choice=1, reasoning=text),
            protocol.TextDelta(id="t", text="", index=index, choice=2, tool_calls=calls),
        ]
    return events


def done(name: str = "send") -> protocol.TextDone:
    made = protocol.ToolCall(id="c", name=name, arguments=CALL)
    choices = (
        protocol.TextChoice(text=MAIL, finish_reason="stop"),
        protocol.TextChoice(text="", finish_reason="stop", reasoning=MAIL),
        protocol.TextChoice(text="", finish_reason="tool_calls", tool_calls=(made,)),
    )
    return protocol.TextDone(id="t", choices=choices, prompt_tokens=1, completion_tokens=9)


@given(cuts=st.lists(st.integers(0, 30), max_size=5).map(sorted), stream=st.booleans())
@settings(max_examples=60, deadline=None)
def test_personal_data_passes_in_no_channel_of_any_choice(cuts: list[int], stream: bool) -> None:
    checked = guard(stream=stream)
    events: list[protocol.JobEvent] = [*deltas(cuts), done()]
    shown = [each for event in events for each in checked.take(event)]
    final = shown.pop()
    assert isinstance(final, protocol.TextDone)
    texts = [final.choices[0].text, final.choices[1].reasoning]
    texts.append(final.choices[2].tool_calls[0].arguments)
    assert texts == [SHOWN, SHOWN, '{"to": "[EMAIL]"}']
    assert checked.altered
    told = ["", "", ""]
    for each in shown:
        assert isinstance(each, protocol.TextDelta)
        told[each.choice] += each.text + each.reasoning
        told[each.choice] += "".join(one.arguments for one in each.tool_calls)
    assert told == (texts if stream else ["", "", ""])


def test_personal_data_of_choices_that_were_not_streamed_is_redacted() -> None:
    [final] = guard().take(done(name="ask john@example.com"))
    assert isinstance(final, protocol.TextDone)
    assert [each.text + each.reasoning for each in final.choices] == [SHOWN, SHOWN, ""]
    [made] = final.choices[2].tool_calls
    assert (made.name, made.arguments) == ("ask [EMAIL]", '{"to": "[EMAIL]"}')


@pytest.mark.parametrize("number", range(3))
def test_personal_data_blocks_in_each_channel(number: int) -> None:
    checked = guard("block")
    with pytest.raises(PersonalDataDetected):
        checked.take(deltas(())[number])


def test_choices_without_findings_pass_as_they_are() -> None:
    checked = guard()
    logprob = protocol.TokenLogprob(token="ok.", id=1, logprob=-1.0)
    events: list[protocol.JobEvent] = [
        protocol.TextDelta(id="t", text="ok.", index=4, choice=number, logprobs=(logprob,))
        for number in range(3)
    ]
    choice = protocol.TextChoice(text="ok.", finish_reason="stop", logprobs=(logprob,))
    final = msgspec.structs.replace(done(), choices=(choice,) * 3)
    events.append(final)
    assert [each for event in events for each in checked.take(event)] == events
    assert not checked.altered


def test_prompts_of_a_list_are_looked_at_and_token_ids_are_refused() -> None:
    several = msgspec.structs.replace(WORK, prompt=None, prompts=("fine", MAIL))
    assert texts_of(several) == {"prompt[0]": "fine", "prompt[1]": MAIL}
    changed = with_texts(several, {"prompt[1]": SHOWN})
    assert isinstance(changed, protocol.TextJob)
    assert changed.prompts == ("fine", SHOWN)
    own = Settings()
    checks = Guard(own, Watch(CollectorRegistry(), Health(), own.guard))
    ids = msgspec.structs.replace(WORK, prompt=None, prompts=("fine", (1, 2)))
    assert asyncio.run(checks.checked(ids, Modes(output="block"))) is ids
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(checks.checked(ids, Modes(input="report")))
    assert caught.value.param == "prompt"
