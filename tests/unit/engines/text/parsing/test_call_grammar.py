"""Grammars of calls: what they let a model write is read as calls that fit their schemas."""

import json
import random
import time
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from tests.support.models.text import train_tokenizer
from tests.unit.engines.text.parsing.samples import TOOLS
from tests.unit.engines.text.parsing.test_answer import Told, form, parser
from workers.engines.base import Refused
from workers.engines.text.grammar.source import translate
from workers.engines.text.grammar.vocabulary import added_tokens, make_vocabulary
from workers.engines.text.parsing.call_grammar import (
    Unwritable,
    after_reasoning,
    call_grammar,
)
from workers.engines.text.parsing.families import FAMILIES, Family
from workers.protocol import Grammar, Tool
from workers.protocol.bounds import MOST_GRAMMAR

LOOK = Tool(
    name="look",
    parameters={
        "type": "object",
        "properties": {
            "wide": {"type": "boolean"},
            "at": {"type": "string", "enum": ["the sea", "<hill>"]},
            "days": {"enum": [1, 2]},
        },
        "required": ["at"],
        "additionalProperties": False,
    },
)
REST = Tool(name="rest")
MARKERS = ("<think>", "</think>", "<tool_call>", "<arg_value>", "</arg_value>", "[ARGS]")
CALLING = [name for name, family in FAMILIES.items() if family.tools]


@lru_cache
def vocabulary(added: tuple[str, ...]) -> tuple[Any, LLTokenizer]:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken(each, special=False) for each in added])
    return tokenizer, make_vocabulary(tokenizer, [tokenizer.eos_token_id], len(tokenizer))


def written(
    grammar: Grammar, added: tuple[str, ...], seed: int, begin: str = ""
) -> tuple[str, bool]:
    """Return what a random model writes after ``begin``, and whether it came to an end."""
    tokenizer, known = vocabulary(added)
    matcher = LLMatcher(known, translate(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    chance = random.Random(seed)
    ids: list[int] = tokenizer.backend_tokenizer.encode(begin, add_special_tokens=False).ids
    assert all(matcher.consume_token(each) for each in ids), "the grammar does not let it begin so"
    for _ in range(500):
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        token = chance.choice(allowed)
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(ids), True
        matcher.consume_token(token)
        ids.append(token)
    return tokenizer.decode(ids), False


def grammar(family: Family, added: tuple[str, ...], **more: Any) -> Grammar:
    known = added_tokens(vocabulary(added)[0])
    settings: dict[str, Any] = {"one": False, "reasoning": None, **more}
    tools = settings.pop("tools", (LOOK, REST))
    return call_grammar(family, tools, known, **settings)


@pytest.mark.parametrize("added", [(), MARKERS], ids=["plain", "added"])
@pytest.mark.parametrize("name", CALLING)
def test_call_grammar_makes_calls_that_fit(name: str, added: tuple[str, ...]) -> None:
    ended = 0
    for seed in range(6):
        text, whole = written(grammar(FAMILIES[name], added), added, seed)
        ended += whole
        told = Told(parser(name, tools=(LOOK, REST)), [text], cut=not whole)
        assert told.calls or not whole, text
        for called, arguments in told.calls:
            assert called in ("look", "rest")
            if called == "look":
                assert arguments["at"] in ("the sea", "<hill>")
                assert set(arguments) <= {"at", "wide", "days"}
        assert not (whole and told.text), text
    assert ended


@pytest.mark.parametrize("name", CALLING)
def test_call_grammar_of_one_call_lets_no_second_follow(name: str) -> None:
    one = grammar(FAMILIES[name], (), one=True, tools=(REST,))
    for seed in range(4):
        text, whole = written(one, (), seed)
        assert len(Told(parser(name, tools=(REST,)), [text]).calls) == 1 or not whole


@pytest.mark.parametrize("added", [(), MARKERS], ids=["plain", "added"])
@pytest.mark.parametrize("name", CALLING)
def test_call_grammar_leaves_reasoning_free(name: str, added: tuple[str, ...]) -> None:
    family = FAMILIES[name]
    if family.reasoning is None:
        return
    opening, closing = family.reasoning[0][0], family.reasoning[1][0]
    for reasoning, begin in ((True, "why not"), (False, f"{opening}why not")):
        held = grammar(family, added, reasoning=reasoning, tools=(REST,))
        text, whole = written(held, added, 1, f"{begin}{closing}{family.resumed}")
        begun = opening if reasoning else ""
        told = Told(parser(name, begun, tools=(REST,)), [text], cut=not whole)
        assert told.reasoning.startswith("why")
        assert told.calls or not whole


def test_call_grammar_takes_schemas_of_all_kinds() -> None:
    deep = Tool(
        name="deep",
        parameters={
            "type": "object",
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
            "properties": {"tree": {"$ref": "#/$defs/node"}, "many": {"type": "array"}, "x": True},
        },
    )
    for name in CALLING:
        _, known = vocabulary(())
        held = grammar(FAMILIES[name], (), tools=(*TOOLS, deep))
        assert not LLMatcher(known, translate(held), log_level=0).is_error()


def test_call_grammar_that_cannot_be_written_says_so() -> None:
    odd = Tool(name="f", parameters={"properties": {"a b": {"type": "integer"}}})
    with pytest.raises(Unwritable, match="a b"):
        grammar(FAMILIES["lfm"], (), tools=(odd,))
    with pytest.raises(Unwritable, match="no grammar"):
        grammar(FAMILIES["think"], ())


def test_call_grammar_lets_json_follow_reasoning() -> None:
    schema = {"properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    asked = Grammar(kind="json_schema", source=json.dumps({"type": "object", **schema}))
    held = after_reasoning(asked, FAMILIES["hermes"], {}, begun=True)
    text, whole = written(held, (), 3, "why</think>\n\n")
    assert whole
    told = Told(parser(form("hermes"), "<think>", tools=()), [text])
    assert (told.reasoning, json.loads(told.text)) == ("why", {"a": 1})


_LARK = '// a remark }\n%llguidance {}\nstart: "no" X+\nX: /[0-9}]/'


@pytest.mark.parametrize(
    ("kind", "source", "fits", "other"),
    [
        ("regex", r"^\s?no\d+\}?$", "no12}", "no"),
        ("choice", '["no", "not now"]', "not now", "not"),
        ("lark", _LARK, "no1}2", "noo"),
        ("json_object", "", '{"no": 1}', "no"),
    ],
)
def test_form_of_any_kind_holds_what_follows_reasoning(
    kind: Any, source: str, fits: str, other: str
) -> None:
    held = after_reasoning(Grammar(kind=kind, source=source), FAMILIES["hermes"], {}, begun=True)
    for text, taken in ((fits, True), (other, False)):
        assert takes(held, f"why no?</think>\n\n{text}", whole=True) is taken, text
    assert not takes(held, fits, whole=True), "without an end of the reasoning"


def test_form_after_reasoning_that_is_too_long_is_refused() -> None:
    long = Grammar(kind="json_schema", source=json.dumps({"const": "x" * (MOST_GRAMMAR - 20)}))
    with pytest.raises(Refused, match="longer than"):
        after_reasoning(long, FAMILIES["hermes"], {}, begun=True)


@pytest.mark.parametrize("name", ["llama_python", "qwen_xml", "hermes"])
def test_call_grammar_of_too_many_arguments_is_given_up_soon(name: str) -> None:
    """Each argument brings its definitions along: a product of lengths."""
    properties = {f"p{number}": {"type": "integer"} for number in range(30_000)}
    schema = {"type": "object", "properties": properties, "$defs": {"a": {"title": "x" * 100_000}}}
    tool = Tool(name="f", parameters=schema)
    begin = time.process_time()
    with pytest.raises(Unwritable, match="too"):
        call_grammar(FAMILIES[name], [tool], {"<a>": 1}, one=True, reasoning=None)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("name", CALLING)
def test_call_grammar_takes_many_arguments_that_may_be_left_out(name: str) -> None:
    """Parentheses that nest deep are refused by the library."""
    properties = {f"p{number}": {"type": "integer"} for number in range(60)}
    tool = Tool(name="f", parameters={"type": "object", "properties": properties})
    calls = call_grammar(FAMILIES[name], [tool], {}, one=True, reasoning=None)
    matcher = LLMatcher(vocabulary(())[1], translate(calls), log_level=0)
    assert not matcher.is_error(), matcher.get_error()


def test_call_grammar_lets_any_argument_be_left_out() -> None:
    properties = {name: {"type": "integer"} for name in "abc"}
    tool = Tool(name="f", parameters={"type": "object", "properties": properties})
    calls = call_grammar(FAMILIES["llama_python"], [tool], {}, one=True, reasoning=None)
    for text in ("[f()]", "[f(b=1)]", "[f(a=1, c=2)]", "[f(a=1, b=2, c=3)]"):
        assert takes(calls, text), text
    for text in ("[f(a=1 b=2)]", "[f(, b=2)]"):
        assert not takes(calls, text), text


def takes(calls: Grammar, text: str, *, whole: bool = False) -> bool:
    """Return whether a text fits a grammar, and with ``whole`` may end there."""
    matcher = LLMatcher(LLTokenizer("byte"), translate(calls), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    if matcher.validate_tokens(tokens) != len(tokens):
        return False
    return not whole or bool(matcher.consume_tokens(tokens) and matcher.is_accepting())
