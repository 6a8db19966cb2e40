"""Answers of every family: whole, cut at every character, malformed and truncated."""

import functools
import json
import time
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from tests.unit.engines.text.parsing.samples import PARIS, SAMPLES, TOOLS, Sample
from workers.engines.stop_strings import StopFinder
from workers.engines.text.parsing.answer import AnswerParser
from workers.engines.text.parsing.families import FAMILIES
from workers.engines.text.parsing.recognition import ResponseFormat, response_format
from workers.protocol import ResponseFormatName, Tool, ToolCall

NAMES = [f"{number}-{sample.family}" for number, sample in enumerate(SAMPLES)]
CALLING = [sample for sample in SAMPLES if sample.calls]


def tokenizer(template: Any = None) -> Any:
    """Return a stand-in for a tokenizer, with what formats read of it."""
    return SimpleNamespace(
        response_template=template,
        get_added_vocab=dict,
        all_special_ids=[],
        all_special_tokens=[],
    )


@functools.cache  # as a server has it: its templates are compiled once
def form(family: str) -> ResponseFormat:
    found = response_format(tokenizer(), None, "", family)
    assert found is not None
    return found


def parser(
    family: str | ResponseFormat,
    begun: str = "",
    tools: tuple[Tool, ...] = TOOLS,
    stop: tuple[str, ...] = (),
    **more: Any,
) -> AnswerParser:
    found = form(family) if isinstance(family, str) else family
    return AnswerParser(found, begun, tools, StopFinder(stop), **more)


class Told:
    """Collects what a parser returns for an answer in pieces."""

    def __init__(self, answer: AnswerParser, pieces: list[str], *, cut: bool = False) -> None:
        told = [answer.push(piece) for piece in pieces if not answer.stopped]
        if not answer.stopped:
            told.append(answer.end(cut=cut))
        self.text = "".join(each.text for each in told)
        self.reasoning = "".join(each.reasoning for each in told)
        self.tool_calls: list[ToolCall] = [call for each in told for call in each.tool_calls]

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return [(each.name, json.loads(each.arguments)) for each in self.tool_calls]


def check(sample: Sample, pieces: list[str]) -> None:
    told = Told(parser(sample.family, sample.begun), pieces)
    assert told.text == sample.content
    assert told.reasoning == sample.reasoning
    assert told.calls == list(sample.calls)
    ids = [each.id for each in told.tool_calls]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_answer_is_the_same_wherever_it_is_cut(sample: Sample) -> None:
    check(sample, [*sample.answer])
    check(sample, [sample.answer])
    for at in range(1, len(sample.answer)):
        check(sample, [sample.answer[:at], sample.answer[at:]])


def test_families_are_those_that_the_setting_knows() -> None:
    assert set(get_args(ResponseFormatName)) == {*FAMILIES, "none"}


def test_answer_samples_hold_every_family() -> None:
    assert {sample.family for sample in SAMPLES} == set(FAMILIES)


@pytest.mark.parametrize("sample", CALLING, ids=lambda sample: sample.family)
def test_answer_cut_by_its_limit_holds_whole_calls_only(sample: Sample) -> None:
    for end in range(len(sample.answer)):
        told = Told(parser(sample.family, sample.begun), [sample.answer[:end]], cut=True)
        assert told.calls == list(sample.calls)[: len(told.calls)]
        if not told.calls and len(told.text) > len(sample.content):
            assert sample.answer[:end].endswith(told.text[len(sample.content) :].lstrip())


BROKEN = [
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": }\n</tool_call>'),
    ("hermes", "<tool_call>{}</tool_call>"),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
    ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>"),
    ("qwen_xml", "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>"),
    ("qwen_xml", "<tool_call>f(1)</tool_call>"),
    ("glm", "<tool_call>f<arg_key>a</arg_key>1</tool_call>"),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}'),
    ("mistral", "[TOOL_CALLS]f[ARGS]{oops}"),
    ("deepseek", "<｜tool▁call▁begin｜>f{}<｜tool▁call▁end｜>"),
    ("deepseek_dsml", '<｜DSML｜function_calls><｜DSML｜invoke name="f">'),
    ("gpt_oss", "<|channel|>commentary to=functions.f json<|message|>{oops<|call|>"),
    ("gemma", "<|tool_call>call:f{a:oops}<tool_call|>"),
    ("kimi", "<|tool_call_begin|>functions.f:0{}<|tool_call_end|>"),
    ("cohere", "<|START_ACTION|>[1]<|END_ACTION|>"),
    ("lfm", "<|tool_call_start|>[unknown(a=1)]<|tool_call_end|>"),
    ("lfm", "<|tool_call_start|>[get_weather(city=__import__('os'))]<|tool_call_end|>"),
    ("llama_python", "[get_weather(city=x)]"),
    ("llama_python", "[get_weather('Paris')]"),
    ("llama_json", '{"name": "get_weather", "parameters": {"city": "Par'),
    ("llama_json", '{"name": "get_weather", "parameters": {}} and so on'),
]


@pytest.mark.parametrize(("family", "text"), BROKEN, ids=[f"{a}-{b[:60]}" for a, b in BROKEN])
def test_answer_with_a_malformed_call_is_told_as_content(family: str, text: str) -> None:
    answer = parser(family)
    told = Told(answer, [f"{text}"])
    assert not told.tool_calls
    assert not answer.called
    assert told.text == text
    before = Told(parser(family), [*"Look: ", text])
    assert before.text == f"Look: {text}"


def test_answer_continues_after_a_malformed_call() -> None:
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    told = Told(parser("hermes"), [*f"a <tool_call>oops</tool_call> b {good}"])
    assert told.text == "a <tool_call>oops</tool_call> b"
    assert told.calls == [("f", {})]


def test_answer_without_tools_keeps_what_looks_like_a_call() -> None:
    for sample in CALLING:
        told = Told(parser(sample.family, sample.begun, tools=()), [*sample.answer])
        assert not told.tool_calls
        assert sample.content in told.text
        assert "get_weather" in told.text
        assert told.reasoning == sample.reasoning


def test_answer_with_one_call_at_a_time_ends_with_the_first() -> None:
    for sample in CALLING:
        answer = parser(sample.family, sample.begun, parallel=False)
        told = Told(answer, [*sample.answer])
        assert answer.called
        assert told.calls == PARIS


def test_answer_stops_at_a_stop_string_of_its_content_only() -> None:
    text = "<think>no END here</think>\n\nText\n\n END more"
    answer = parser("hermes", stop=("END", "\n\n\n"))
    told = Told(answer, [*text])
    assert answer.stopped
    assert (told.reasoning, told.text) == ("no END here", "Text\n\n ")
    call = '<tool_call>{"name": "f", "arguments": {"a": "END"}}</tool_call>'
    assert Told(parser("hermes", stop=("END",)), [*f"EN {call}"]).calls == [("f", {"a": "END"})]
    assert Told(parser("hermes", stop=("END",)), [*"EN"]).text == "EN"


def test_answer_s_ids_are_the_model_s_own_or_of_its_template_s_form() -> None:
    by_family = {
        sample.family: Told(parser(sample.family, sample.begun), [sample.answer]).tool_calls
        for sample in CALLING
    }
    assert [call.id for call in by_family["kimi"]] == [
        "functions.get_weather:0",
        "functions.write_file:1",
    ]
    assert all(len(call.id) == 9 for call in by_family["mistral"])
    assert all(call.id.startswith("call_") for call in by_family["hermes"])


def test_answer_that_is_all_blanks_or_markers_takes_linear_time() -> None:
    began = time.monotonic()
    for family in ("hermes", "qwen_xml", "gpt_oss", "llama_json"):
        for text in (" " * 4_000, "<" * 4_000, "<tool_call>" + " <p" * 1_000):
            told = Told(parser(family), [*text])
            assert told.text == text
    body = "<parameter=a>" * 20_000
    text = f"<tool_call><function=f>{body}</function></tool_call>"
    assert Told(parser("qwen_xml"), [text]).text == text
    assert time.monotonic() - began < 30  # quadratic time would take minutes


OWN = {
    "start_anchor": "[A]",
    "fields": {
        "thinking": {"open_pattern": r"\s*<t>", "close": "</t>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<call (?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
        "content": {"close_pattern": r"\s*<eos>", "content": "text"},
    },
}


def test_answer_is_parsed_by_the_model_s_own_template() -> None:
    own = response_format(tokenizer(OWN), "<tool_call>", "qwen3", None)
    assert own is not None
    assert own.family is None
    assert own.reasons
    assert own.calls
    assert own.begun("x[A]y[A] <t>") == " <t>"
    text = 'Hm.</t>Hi.\n <call f>{"a": 1}</call>\n<call g>{oops}</call>  <call h>{}</call><eos>'
    told = Told(parser(own, begun=" <t>"), [*text])
    assert told.reasoning == "Hm."
    assert told.calls == [("f", {"a": 1}), ("h", {})]
    assert told.text == "Hi.<call g>{oops}</call>"
    assert Told(parser(own), [*" " * 4_000, "x"]).text == " " * 4_000 + "x"


def test_answer_survives_a_template_that_never_ends_its_search() -> None:
    fields = {"content": {}, "tool_calls": {"open_pattern": r"(a+a+)+b", "close": "x"}}
    own = response_format(tokenizer({"start_anchor": "[A]", "fields": fields}), None, "", None)
    assert own is not None
    text = "a" * 5_000 + "c"
    assert Told(parser(own), [text, "more"]).text == text + "more"


def test_answer_of_a_model_with_a_broken_template_is_recognised() -> None:
    for broken in ({}, {"fields": 1}, {"start_anchor": "x", "fields": {"content": {"open": 5}}}, 5):
        found = response_format(tokenizer(broken), "<tool_call><think>", "", None)
        assert found is not None
        assert found.family is FAMILIES["hermes"]


def test_answer_begins_with_what_the_prompt_has_written_of_it() -> None:
    hermes = form("hermes")
    assert hermes.begun("<|im_start|>assistant\nno<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert hermes.begun("of a template without a known anchor: <think>\n") == "<think>"
    assert hermes.begun("nothing of the kind") == ""


@pytest.mark.parametrize(
    ("source", "model_type", "name"),
    [
        ("{{ tools }}<tool_call>\n<function=x>", "", "qwen_xml"),
        ("<tool_call>{{ tools }}", "llama", "hermes"),
        ("<tool_call><arg_key>", "", "glm"),
        ("<|channel|>analysis<|message|>", "", "gpt_oss"),
        ("{% if tools %}{% endif %}", "qwen3", "hermes"),
        ("{{ messages }}", "qwen3", None),
        ("{{ messages }}<think>", "qwen3", "think"),
        ('<|start_header_id|> ... "parameters": ...', "llama", "llama_json"),
    ],
)
def test_family_is_recognised_by_the_chat_template(
    source: str, model_type: str, name: str | None
) -> None:
    found = response_format(tokenizer(), source, model_type, None)
    assert (found.family.name if found and found.family else None) == name
    assert response_format(tokenizer(), source, model_type, "none") is None
    wanted = response_format(tokenizer(OWN), source, model_type, "glm")
    assert wanted is not None
    assert wanted.family is FAMILIES["glm"]
