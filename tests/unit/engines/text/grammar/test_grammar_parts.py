"""The parts of grammars: sources, vocabularies, compiling, masks and checks."""

import json
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from tests.support.logs import CaughtLogs
from tests.support.models.text import BOS, EOS, VOCAB, train_tokenizer
from workers.engines.base import Refused
from workers.engines.text.grammar import compiler, validation
from workers.engines.text.grammar.compiler import GrammarCompiler
from workers.engines.text.grammar.constraint import Constraint, Ends, MaskThread
from workers.engines.text.grammar.mask import expand, masked
from workers.engines.text.grammar.source import json_text, literal, translate
from workers.engines.text.grammar.vocabulary import added_tokens, make_vocabulary
from workers.protocol import Grammar


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="module")
def ends(tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id, tokenizer.bos_token_id]


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any, ends: list[int]) -> LLTokenizer:
    return make_vocabulary(tokenizer, ends, VOCAB)


@pytest.fixture
def grammars(vocabulary: LLTokenizer) -> Iterator[GrammarCompiler]:
    grammars = GrammarCompiler(lambda: vocabulary)
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def masks() -> Iterator[MaskThread]:
    masks = MaskThread()
    yield masks
    masks.close()


class Held:
    """Checks a text against a grammar, token by token."""

    def __init__(
        self, grammars: GrammarCompiler, masks: MaskThread, ends: list[int], grammar: Grammar
    ) -> None:
        compiled = grammars.compile(grammar).result()
        self.constraint = Constraint(compiled, Ends(ends, VOCAB), masks)

    def may_follow(self, token: int) -> bool:
        assert self.constraint.wait(30)
        return bool(self.constraint.words[token // 32] >> (token % 32) & 1)

    def takes(self, tokens: list[int]) -> bool:
        for token in tokens:
            if not self.may_follow(token):
                return False
            self.constraint.advance(token)
        return self.constraint.wait(30)


def test_vocabulary_has_the_bytes_that_the_library_reads(
    tokenizer: Any, ends: list[int], vocabulary: LLTokenizer
) -> None:
    theirs = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=VOCAB, eos_token=ends)
    for token in range(len(tokenizer)):
        assert vocabulary.decode_bytes([token]) == theirs.decode_bytes([token])
        assert vocabulary.is_special_token(token) == theirs.is_special_token(token)
    assert vocabulary.tokenize_str("json.dumps(żó)") == theirs.tokenize_str("json.dumps(żó)")
    assert set(vocabulary.eos_tokens) == set(theirs.eos_tokens)


def test_end_tokens_may_follow_only_where_the_grammar_is_whole(
    tokenizer: Any, ends: list[int], grammars: GrammarCompiler, masks: MaskThread
) -> None:
    held = Held(grammars, masks, ends, Grammar(kind="regex", source="ab+"))
    assert not any(held.may_follow(end) for end in ends)
    for letter in "ab":
        [token] = tokenizer.encode(letter, add_special_tokens=False)
        assert held.takes([token])
    assert all(held.may_follow(end) for end in ends)
    spare = range(len(tokenizer), VOCAB)
    assert not any(held.may_follow(token) for token in spare)
    assert not held.constraint.complete


def test_grammar_is_complete_when_only_an_end_may_follow(
    tokenizer: Any, ends: list[int], grammars: GrammarCompiler, masks: MaskThread
) -> None:
    held = Held(grammars, masks, ends, Grammar(kind="choice", source='["no"]'))
    assert held.takes(tokenizer.encode("no", add_special_tokens=False))
    assert held.constraint.complete


def test_token_that_may_not_follow_is_an_error_of_its_text(
    ends: list[int], grammars: GrammarCompiler, masks: MaskThread
) -> None:
    held = Held(grammars, masks, ends, Grammar(kind="choice", source='["no"]'))
    held.constraint.advance(ends[0])
    assert held.constraint.wait(30)
    assert held.constraint.error is not None


@given(text=st.text(alphabet=f'{BOS}{EOS}ab \n"\\ż<|>', max_size=30))
def test_literal_of_a_text_is_what_its_tokenizer_writes(text: str) -> None:
    tokenizer, ends, grammars, masks = _shared()
    written = literal(text or "x", added_tokens(tokenizer))
    held = Held(grammars, masks, ends, Grammar(kind="lark", source=f"start: {written}"))
    assert held.takes(tokenizer.encode(text or "x", add_special_tokens=False))
    assert held.constraint.complete or held.may_follow(ends[0])


def _shared(made: list[Any] = []) -> Any:  # noqa: B006  made once, hypothesis calls it again
    if not made:
        tokenizer = train_tokenizer()
        ends = [tokenizer.eos_token_id]
        vocabulary = make_vocabulary(tokenizer, ends, VOCAB)
        made += [tokenizer, ends, GrammarCompiler(lambda: vocabulary), MaskThread()]
    return made


def test_json_in_lark_is_held_to_its_schema(
    tokenizer: Any, ends: list[int], grammars: GrammarCompiler, masks: MaskThread
) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    added = added_tokens(tokenizer)
    source = f"start: {literal(BOS, added)} call\ncall: {json_text(schema)}\n"
    for text, right in ((f'{BOS}{{"a": 1}}', True), (f'{BOS}{{"b": 1}}', False)):
        held = Held(grammars, masks, ends, Grammar(kind="lark", source=source))
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert (held.takes(ids) and held.constraint.complete) == right


def test_white_space_in_json_has_an_end(
    tokenizer: Any, ends: list[int], grammars: GrammarCompiler, masks: MaskThread
) -> None:
    held = Held(grammars, masks, ends, Grammar(kind="json_object", source=""))
    [brace], [line] = (tokenizer.encode(each, add_special_tokens=False) for each in "{\n")
    assert held.takes([brace])
    assert not held.takes([line] * 50)


def test_compiler_keeps_what_comes_again_within_bounds(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_MOST_KEPT", 2)
    first, second, third = (Grammar(kind="regex", source=each) for each in ("a", "b", "c"))
    made = grammars.compile(first)
    assert grammars.compile(Grammar(kind="regex", source="a")) is made
    grammars.compile(second)
    grammars.compile(third)
    assert grammars.compile(first) is not made
    monkeypatch.setattr(compiler, "_MOST_KEPT_CHARACTERS", 10)
    long = Grammar(kind="regex", source="x" * 11)
    assert grammars.compile(long) is not grammars.compile(long)


def test_compiler_refuses_with_the_same_reason_for_another_field(
    grammars: GrammarCompiler,
) -> None:
    for param in ("regex", "guided_regex"):
        with pytest.raises(Refused) as caught:
            grammars.compile(Grammar(kind="regex", source="(", param=param)).result()
        assert caught.value.param == param


def test_formats_that_are_remarks_are_left_out_unless_strict(grammars: GrammarCompiler) -> None:
    own = {"type": "string", "format": "colour"}
    schema = {
        "type": "object",
        "properties": {"format": own, "a": {"items": [own, {"format": "date"}]}},
        "required": ["format"],
        "default": {"format": "x"},
    }
    source = json.dumps(schema)
    grammars.compile(Grammar(kind="json_schema", source=source)).result()
    with pytest.raises(Refused, match="colour"):
        grammars.compile(Grammar(kind="json_schema", source=source, strict=True)).result()
    left = translate(Grammar(kind="json_schema", source=source))
    assert "colour" not in left
    assert '"format":{"type":"string"}' in left.replace(" ", "")
    assert '"default":{"format":"x"}' in left.replace(" ", "")


def test_compiler_outlives_a_panic_of_its_library(
    vocabulary: LLTokenizer,
) -> None:
    class Panic(BaseException):
        pass

    def panic() -> LLTokenizer:
        if not calls:
            calls.append(1)
            raise Panic
        return vocabulary

    calls: list[int] = []
    grammars = GrammarCompiler(panic)
    with pytest.raises(Refused, match="library failed"):
        grammars.compile(Grammar(kind="regex", source="a")).result()
    grammars.compile(Grammar(kind="regex", source="b")).result()
    grammars.close()


def test_compiler_makes_one_grammar_at_a_time(vocabulary: LLTokenizer) -> None:
    gate = threading.Event()

    def slow() -> LLTokenizer:
        assert gate.wait(30)
        return vocabulary

    grammars = GrammarCompiler(slow)
    futures = [grammars.compile(Grammar(kind="regex", source=each)) for each in "ab"]
    assert not any(future.done() for future in futures)
    gate.set()
    assert all(future.result() for future in futures)
    grammars.close()


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4))
def test_masks_are_the_same_on_every_device(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    words = random.integers(-(2**31), 2**31, (rows, 3), dtype=np.int64).astype(np.int32)
    logits = torch.randn(rows + 1, 90)
    out = expand(torch.from_numpy(words), 90)
    picked = list(range(rows))
    expected = logits.clone()
    expected[:rows][out] = float("-inf")
    before = logits.clone()
    assert torch.equal(masked(logits, picked, list(words)), expected)
    assert torch.equal(masked(logits[:rows], picked, list(words)), expected[:rows])
    assert torch.equal(logits, before), "the logits themselves were changed"
    assert bool(out[0, 33]) == (not words[0, 1] >> 1 & 1)


def test_check_finds_what_is_not_of_the_form() -> None:
    schema = {"type": "object", "properties": {"a": {"oneOf": [{"minimum": 1}, {"maximum": 3}]}}}
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    assert validation.first_fault(grammar, ['{"a": 0}']) is None
    fault = validation.first_fault(grammar, ['{"a": 2}'])
    assert fault is not None
    assert "$.a" in fault
    assert validation.first_fault(grammar, ['{"a"']) is not None
    assert validation.first_fault(Grammar(kind="choice", source='["a"]'), ["b"]) is not None
    assert validation.first_fault(Grammar(kind="json_object", source=""), ["[]"]) is not None


def test_check_of_patterns_is_left_to_the_grammar() -> None:
    """Python's expressions take exponential time, and nothing can stop them."""
    schema = {
        "patternProperties": {"^(a+)+$": {"type": "integer"}},
        "additionalProperties": {"pattern": "^(a+)+$"},
    }
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    assert validation.first_fault(grammar, [json.dumps({"a" * 60 + "!": "a" * 60 + "!"})]) is None


def test_check_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SECONDS", 0.05)
    both = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}, {"type": "integer"}]}
    schema = {**both, "$defs": {"a": {"type": "array", "items": both}}}
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    assert validation.first_fault(grammar, ["[" * 60 + "]" * 60]) is None


def test_check_fetches_no_reference() -> None:
    grammar = Grammar(kind="json_schema", source='{"$ref": "http://127.0.0.1:9/schema"}')
    assert validation.first_fault(grammar, ["{}"]) is None


def chain(kind: Any, length: int) -> Grammar:
    """Return a grammar whose rules name one another, each the next one."""
    if kind == "lark":
        rules = "\n".join(f"r{number}: r{number + 1}" for number in range(length))
        return Grammar(kind=kind, source=f'start: r0\n{rules}\nr{length}: "a"')
    steps = {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(length)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**steps, f"a{length}": {"const": "a"}}}
    return Grammar(kind=kind, source=json.dumps(schema))


@pytest.mark.parametrize(("kind", "length"), [("lark", 12_000), ("json_schema", 6_000)])
def test_compiler_outlives_long_chains_of_rules(
    grammars: GrammarCompiler, kind: Any, length: int
) -> None:
    """The library follows them by recursion; a stack that ends would end this process."""
    usual = threading.stack_size()
    matcher = grammars.compile(chain(kind, length)).result().matcher.deep_copy()
    assert not matcher.is_error()
    assert threading.stack_size() == usual


def test_compiler_takes_little_memory_for_short_sources(grammars: GrammarCompiler) -> None:
    grammars.compile(Grammar(kind="regex", source="a")).result()
    before = held_bytes()
    grammars.compile(Grammar(kind="regex", source="(a{1000}){1000}")).result()
    assert held_bytes() - before < 60 << 20


def held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_compiler_refuses_grammars_that_take_long(grammars: GrammarCompiler) -> None:
    properties = {f"p{number}": {"type": "string"} for number in range(8000)}
    source = json.dumps({"type": "object", "properties": properties})
    with pytest.raises(Refused, match="too big"):
        grammars.compile(Grammar(kind="json_schema", source=source)).result()


def test_compiler_logs_nothing_of_a_schema_that_is_no_json(
    grammars: GrammarCompiler, caplog: CaughtLogs
) -> None:
    source = '{"const": "\\ud800", "minimum": 99999999999999999999999}'
    with pytest.raises(Refused, match="no JSON"):
        grammars.compile(Grammar(kind="json_schema", source=source)).result()
    assert not caplog.records


def test_check_of_many_texts_takes_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SECONDS", 0.05)
    both = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}, {"type": "integer"}]}
    schema = {**both, "$defs": {"a": {"type": "array", "items": both}}}
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    begin = time.process_time()
    assert validation.first_fault(grammar, ["[" * 60 + "]" * 60] * 128) is None
    assert time.process_time() - begin < 3
