"""Answers of tiny models that say what a script wants: reasoning, calls and content apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.support.engine_runs import run_to_end
from tests.support.models.text import make_tiny_model, write_script
from tests.support.text_harness import done, load
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.protocol import (
    ChatMessage,
    Event,
    Grammar,
    Sampling,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
    Tool,
)

LOOK = Tool(name="look", parameters={"type": "object", "properties": {"at": {"type": "string"}}})
#: knows tools, and begins each answer with reasoning
TEMPLATE = """{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}
{{- m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}
{{- call.function.arguments | tojson }}{% endfor %}{% endfor %}
{{- '<|im_start|>assistant\n' }}{% if enable_thinking is not false %}<think>{% endif %}"""
PIECES = [
    "Hm.",
    "</think>\n\n",
    "I look.\n",
    "<tool_call>",
    '{"name": "look", ',
    '"arguments": {"at": "sea"}}\n',
    "</tool_call>",
]


def script(folder: Path, template: str, pieces: list[str], *, first: str) -> Path:
    """Make a model that says the pieces after a prompt that ends with ``first``, then its end."""
    make_tiny_model("llama", folder, template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = first.startswith("[")
    tokenizer.add_tokens([AddedToken(each, special=special) for each in (first, *pieces)])
    tokenizer.save_pretrained(folder)
    said = [tokenizer.convert_tokens_to_ids(each) for each in pieces]
    write_script(folder, tokenizer.convert_tokens_to_ids(first), [*said, tokenizer.eos_token_id])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script(tmp_path_factory.mktemp("hermes"), TEMPLATE, PIECES, first="<think>")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TextEngine:
    return load(folder)[0]


def ask(name: str = "a", **more: Any) -> TextJob:
    settings = {
        name: more.pop(name) for name in ("max_tokens", "stop", "logit_bias") if name in more
    }
    sampling = Sampling(**{"max_tokens": 12, **settings})
    messages = (ChatMessage("user", "where?"),)
    return TextJob(id=name, sampling=sampling, **{"messages": messages, "tools": (LOOK,), **more})


def answer(engine: TextEngine, job: TextJob) -> tuple[TextDone, list[TextDelta]]:
    events: list[Event] = run_to_end(engine, job)
    return done(events)[job.id], [each for each in events if isinstance(each, TextDelta)]


def test_answer_is_parsed_alike_in_a_stream_and_as_a_whole(engine: TextEngine) -> None:
    final, deltas = answer(engine, ask())
    [choice] = final.choices
    [call] = choice.tool_calls
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "I look.", "tool_calls")
    assert (call.name, json.loads(call.arguments)) == ("look", {"at": "sea"})
    assert final.reasoning_tokens == 2
    assert final.completion_tokens == len(PIECES) + 1
    assert "".join(each.text for each in deltas) == choice.text
    assert "".join(each.reasoning for each in deltas) == choice.reasoning
    [told] = [each for delta in deltas for each in delta.tool_calls]
    assert (told.index, told.id, told.name, told.arguments) == (0, call.id, "look", call.arguments)


def test_answer_cut_in_a_call_tells_it_as_content(engine: TextEngine) -> None:
    [choice] = answer(engine, ask(max_tokens=6))[0].choices
    assert choice.finish_reason == "length"
    assert not choice.tool_calls
    assert choice.text == 'I look.\n<tool_call>{"name": "look", "arguments": {"at": "sea"}}\n'
    [choice] = answer(engine, ask(max_tokens=1))[0].choices
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "", "length")


def test_answer_stops_at_a_stop_string_of_its_content(engine: TextEngine) -> None:
    [choice] = answer(engine, ask(stop=("Hm", " look")))[0].choices
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "I", "stop")


def test_answer_without_tools_is_content_with_its_reasoning_apart(engine: TextEngine) -> None:
    final, _ = answer(engine, ask(tools=()))
    [choice] = final.choices
    assert choice.reasoning == "Hm."
    assert choice.text.startswith("I look.\n<tool_call>{")
    assert choice.finish_reason == "stop"


def test_answers_to_prompts_are_not_parsed(engine: TextEngine) -> None:
    final, _ = answer(engine, ask(messages=None, tools=(), prompt="x<think>"))
    assert final.text.startswith("Hm.</think>")


def test_answers_beside_others_are_the_same(engine: TextEngine) -> None:
    alone = answer(engine, ask())[0].choices[0]
    jobs = [ask("a"), ask("b", tools=()), ask("c", messages=None, tools=(), prompt="x<think>")]
    both = done(run_to_end(engine, *jobs))
    assert both["a"].choices[0].text == alone.text
    assert both["a"].choices[0].reasoning == alone.reasoning
    assert both["c"].text.startswith("Hm.</think>")


def test_template_switches_reach_the_template(engine: TextEngine) -> None:
    thinks = engine.prepare(ask()).prompts[0]
    not_so = engine.prepare(ask(template_kwargs={"enable_thinking": False})).prompts[0]
    assert len(not_so.ids) == len(thinks.ids) - 1
    assert thinks.reading is not None
    assert thinks.reading.begun == "<think>"
    assert not_so.reading is not None
    assert not_so.reading.begun == ""


NEAR = Tool(
    name="near",
    parameters={
        "type": "object",
        "properties": {"what": {"enum": ["sea", "hill"]}, "far": {"type": "boolean"}},
        "required": ["what", "far"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("choice", ["required", "near"])
def test_answer_that_has_to_call_a_tool_calls_it(
    engine: TextEngine, folder: Path, choice: str
) -> None:
    thought = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<think>")
    settings = {
        "tools": (NEAR, LOOK),
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 200,
        "template_kwargs": {"enable_thinking": False},
        "logit_bias": {thought: -100.0},
    }
    jobs = [ask(f"{stream}", stream=stream, **settings) for stream in (True, False)]
    plain = answer(engine, ask("plain"))[0].choices
    ended = done(run_to_end(engine, *jobs, ask("plain")))
    for job in jobs:
        [told] = ended[job.id].choices
        assert told.finish_reason in ("tool_calls", "length")
        if choice == "near":
            [call] = told.tool_calls
            assert call.name == "near"
            arguments = json.loads(call.arguments)
            assert arguments["what"] in ("sea", "hill")
            assert isinstance(arguments["far"], bool)
    assert ended["plain"].choices[0].text == plain[0].text


def test_answer_in_json_comes_after_its_reasoning(engine: TextEngine) -> None:
    schema = NEAR.parameters or {}
    form = Grammar(kind="json_schema", source=json.dumps(schema))
    quiet = {"enable_thinking": False}
    job = ask(tools=(), grammar=form, template_kwargs=quiet, max_tokens=200)
    [told] = answer(engine, job)[0].choices
    assert told.reasoning == ""
    assert set(json.loads(told.text)) == {"what", "far"}


def test_setting_that_reads_nothing_leaves_the_text_and_refuses_tools(folder: Path) -> None:
    engine, _ = load(folder, text=TextOptions(response_template="none"))
    assert answer(engine, ask(tools=()))[0].text.startswith("Hm.</think>")
    with pytest.raises(Refused, match=r"text\.response_template") as refused:
        engine.prepare(ask())
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", "tools")


def test_template_without_a_place_for_tools_is_told_of_them(tmp_path: Path) -> None:
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|go|>"
    engine, _ = load(script(tmp_path, plain, PIECES[2:], first="<|go|>"))
    history = (
        ChatMessage("user", "where?"),
        ChatMessage("assistant", "", tool_calls=()),
        ChatMessage("tool", "blue", tool_call_id="c1"),
    )
    [choice] = answer(engine, ask(messages=history))[0].choices
    assert choice.finish_reason == "tool_calls"
    assert choice.tool_calls[0].name == "look"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer.decode(engine.prepare(ask(messages=history)).prompts[0].ids)
    assert '"name": "look"' in prompt
    assert "<tool_response>\nblue" in prompt


def test_answer_with_special_tokens_as_markers_is_read(tmp_path: Path) -> None:
    template = (
        "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}[/INST]{# [TOOL_CALLS] #}"
    )
    pieces = ["[TOOL_CALLS]", "look", "[ARGS]", '{"at": "sea"}']
    engine, _ = load(script(tmp_path, template, pieces, first="[/INST]"))
    [choice] = answer(engine, ask())[0].choices
    assert [each.name for each in choice.tool_calls] == ["look"]
    [choice] = answer(engine, ask(tools=()))[0].choices
    assert not choice.tool_calls
