"""Texts that are held to grammars, from a tiny model whose own texts are noise."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.support.engine_runs import finals, run_to_end, step_until, submit
from tests.support.models.text import EOS, make_tiny_model
from tests.support.text_harness import load, run
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.engines.text.grammar import constraint as constraint_module
from workers.engines.text.grammar import rows as rows_module
from workers.protocol import Cancelled, Failed, Grammar, Sampling, TextDelta, TextDone, TextJob

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
KINDS = {
    "person": Grammar(kind="json_schema", source=json.dumps(PERSON), strict=True),
    "choice": Grammar(kind="choice", source=json.dumps(["yes", "no", "żółć"])),
    "regex": Grammar(kind="regex", source=r"^[a-f]{3}-[0-9]{2,4}$"),
    "lark": Grammar(kind="lark", source='start: "f(" NUMBER ")"\nNUMBER: /[0-9]{1,4}/\n'),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TextEngine]:
    engine, _ = load(folder, step_tokens=32)
    yield engine
    engine.close()


def job(
    name: str, grammar: Grammar | None, *, n: int = 1, stream: bool = True, **sampling: Any
) -> TextJob:
    settings = Sampling(**{"max_tokens": 100, **sampling})
    return TextJob(
        id=name, prompt=f"say {name}", n=n, sampling=settings, grammar=grammar, stream=stream
    )


def is_of_its_kind(kind: str, text: str) -> bool:
    match kind:
        case "person":
            jsonschema.validate(json.loads(text), PERSON)
            return True
        case "choice":
            return text in ("yes", "no", "żółć")
        case "regex":
            return re.fullmatch(r"[a-f]{3}-[0-9]{2,4}", text) is not None
    return re.fullmatch(r"f\(\d{1,4}\)", text) is not None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_text_is_of_the_form_that_was_asked_for(engine: TextEngine, temperature: float) -> None:
    settings: dict[str, Any] = {"temperature": temperature, "seed": 5, "frequency_penalty": 0.5}
    jobs = [
        job(f"{kind}/{n}", grammar, n=n, ignore_eos=ignore, **settings)
        for kind, grammar in KINDS.items()
        for n, ignore in ((1, True), (3, False))
    ]
    events = run_to_end(engine, *jobs)
    done = finals(events)
    for name, final in done.items():
        assert isinstance(final, TextDone), final
        for number, choice in enumerate(final.choices):
            assert choice.finish_reason == "stop"
            assert is_of_its_kind(name.partition("/")[0], choice.text), choice.text
            pieces = [
                each.text
                for each in events
                if isinstance(each, TextDelta) and (each.id, each.choice) == (name, number)
            ]
            assert "".join(pieces) == choice.text


def test_json_object_is_an_object_or_is_cut(engine: TextEngine) -> None:
    done = run(
        engine,
        job("free", Grammar(kind="json_object", source=""), temperature=1.0, seed=1),
        job("cut", KINDS["person"], max_tokens=3),
    )
    if done["free"].choices[0].finish_reason == "stop":
        assert isinstance(json.loads(done["free"].text), dict)
    assert done["free"].text.startswith("{")
    assert done["cut"].choices[0].finish_reason == "length"
    assert done["cut"].completion_tokens == 3


def test_neighbours_of_grammars_say_what_they_say_alone(engine: TextEngine) -> None:
    plain = [job(f"plain {number}", None, max_tokens=30, ignore_eos=True) for number in range(3)]
    drawn = job("drawn", None, max_tokens=30, temperature=0.9, seed=3, ignore_eos=True)
    alone = {each.id: run(engine, each)[each.id].text for each in (*plain, drawn)}
    held = [job(kind, grammar, n=2) for kind, grammar in KINDS.items()]
    together = run(engine, *plain, *held, drawn)
    assert {name: together[name].text for name in alone} == alone


def test_grammar_is_told_each_token_once_when_rows_are_preempted(folder: Path) -> None:
    engine, _ = load(folder, step_tokens=32, kv_cache_bytes=100_000, max_context=200)
    jobs = [job(str(n), KINDS["person"], temperature=1.0, seed=n, max_tokens=80) for n in range(4)]
    submit(engine, *jobs)
    preempted = 0
    schedule = engine._scheduler.schedule

    def counted(**how: bool) -> Any:
        nonlocal preempted
        plan = schedule(**how)
        preempted += len(plan.preempted)
        return plan

    engine._scheduler.schedule = counted  # type: ignore[method-assign]
    done = finals(step_until(engine, lambda _: not engine.in_flight))
    assert preempted, "there was room for all"
    for final in done.values():
        assert isinstance(final, TextDone), final
        if final.choices[0].finish_reason == "stop":
            assert is_of_its_kind("person", final.text)
    engine.close()


def test_slow_mask_holds_up_its_own_row_only(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = constraint_module.Constraint._look
    gate = threading.Event()

    def slow(constraint: constraint_module.Constraint) -> None:
        if constraint.grammar.kind == "regex":
            assert gate.wait(30)
        look(constraint)

    monkeypatch.setattr(constraint_module.Constraint, "_look", slow)
    monkeypatch.setattr(rows_module, "_MOST_WAIT", 0.001)
    submit(engine, job("held", KINDS["regex"]), job("free", None, max_tokens=5, ignore_eos=True))
    events = step_until(engine, lambda events: "free" in finals(events))
    assert "held" not in finals(events), "a mask that is not there let its row go on"
    gate.set()
    events = step_until(engine, lambda _: False)
    final = finals(events)["held"]
    assert isinstance(final, TextDone)
    assert is_of_its_kind("regex", final.text)


def test_grammar_that_cannot_be_kept_to_is_refused_with_the_reason(engine: TextEngine) -> None:
    refused = Grammar(kind="json_schema", source='{"not": {"type": "string"}}', param="a.schema")
    try:
        final = finals(run_to_end(engine, job("first", refused)))["first"]
        assert isinstance(final, Failed)
        found: Failed | Refused = final
    except Refused as known:  # it was compiled before the job was made
        found = known
    assert (found.code, found.param) == ("INVALID_REQUEST", "a.schema")
    assert "not" in str(getattr(found, "message", found))
    with pytest.raises(Refused, match="Unimplemented"):
        engine.prepare(job("again", refused))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("lark", "start: missing"),
        ("json_schema", "[1]"),
        ("json_schema", "{"),
        ("json_schema", '{"type": "object", "$ref": "http://example.com/a"}'),
        ("json_schema", '{"oneOf": [{"type": "object"}, {"type": "object"}]}'),
    ],
)
def test_faulty_grammar_is_refused(engine: TextEngine, kind: Any, source: str) -> None:
    """It is refused while the job is prepared, if it is known by then, or by the job's end."""
    grammar = Grammar(kind=kind, source=source, strict=True)
    refused: Any
    try:
        refused = finals(run_to_end(engine, job("faulty", grammar)))["faulty"]
    except Refused as error:
        refused = error
    assert isinstance(refused, Refused | Failed)
    assert refused.code == "INVALID_REQUEST"
    assert "/site-packages" not in refused.message


def test_overlapping_alternatives_are_taken_unless_strict(engine: TextEngine) -> None:
    source = '{"oneOf": [{"type": "integer", "maximum": 9}, {"type": "integer", "minimum": 7}]}'
    grammar = Grammar(kind="json_schema", source=source)
    final = finals(run_to_end(engine, job("one", grammar, max_tokens=20)))["one"]
    assert isinstance(final, TextDone), final
    int(final.text)


def test_text_that_is_not_of_its_schema_fails_after_its_last_token(engine: TextEngine) -> None:
    source = '{"oneOf": [{"type": "boolean"}, {"enum": [true, false]}]}'
    final = finals(run_to_end(engine, job("both", Grammar(kind="json_schema", source=source))))
    assert isinstance(final["both"], Failed)
    assert final["both"].code == "INVALID_REQUEST"
    assert "form" in final["both"].message
    assert final["both"].prompt_tokens > 0
    assert final["both"].completion_tokens > 0


def test_grammar_that_takes_too_much_to_be_followed_is_the_request_s_fault(
    engine: TextEngine,
) -> None:
    """Faults of the server are charged to nobody."""
    wide = {"anyOf": [{"type": "string"}] * 50}
    parts = [{"type": "object", "properties": {str(number): wide}} for number in range(200)]
    grammar = Grammar(kind="json_schema", source=json.dumps({"anyOf": parts}))
    final = finals(run_to_end(engine, job("wide", grammar)))["wide"]
    assert isinstance(final, Failed)
    assert (final.code, "takes too much" in final.message) == ("INVALID_REQUEST", True)
    assert final.prompt_tokens > 0


def test_stop_string_ends_a_text_within_its_grammar(engine: TextEngine) -> None:
    done = run(engine, job("stopped", KINDS["person"], stop=('"age"',)))
    assert done["stopped"].choices[0].finish_reason == "stop"
    assert '"age"' not in done["stopped"].text


def test_stop_token_ends_a_text_within_its_grammar(engine: TextEngine) -> None:
    tokens = engine._loaded.tokenizer.encode('"', add_special_tokens=False)
    done = run(engine, job("token", KINDS["person"], stop_token_ids=tuple(tokens)))
    assert done["token"].choices[0].finish_reason == "stop"


def test_echoed_prompt_is_no_part_of_the_form(engine: TextEngine) -> None:
    echoed = msgspec.structs.replace(job("echo", KINDS["choice"]), echo=True)
    text = run(engine, echoed)["echo"].text
    assert is_of_its_kind("choice", text.removeprefix("say echo"))


def test_biases_choose_among_what_the_grammar_lets_follow(engine: TextEngine) -> None:
    tokenizer = engine._loaded.tokenizer
    end = tokenizer.convert_tokens_to_ids(EOS)
    bias = {tokenizer.encode("n", add_special_tokens=False)[0]: 100.0, end: 100.0}
    no = tokenizer.encode("no", add_special_tokens=False)[0]
    done = run(engine, job("no", KINDS["choice"], logit_bias={**bias, no: 100.0}))
    assert done["no"].text == "no"


def test_job_is_cancelled_while_its_grammar_is_compiled(engine: TextEngine) -> None:
    values = [f"value {number}" for number in range(3000)]
    grammar = Grammar(kind="json_schema", source=json.dumps({"enum": values}))
    submit(engine, job("cancelled", grammar))
    engine.cancel("cancelled")
    events = step_until(engine, lambda _: False)
    assert isinstance(finals(events)["cancelled"], Cancelled)
    assert not any(engine.books().values())
