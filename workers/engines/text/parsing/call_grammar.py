"""Writes grammars of answers that call tools, or that have a form once their reasoning has ended.

Reasoning is left free: a model that is made to call at once calls worse.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.engines.text.grammar.source import json_text, literal, refusal, rule_body
from workers.engines.text.parsing.call_forms import FORMS, ArgumentForm, CallForm
from workers.engines.text.parsing.families import Family
from workers.protocol import Grammar, Tool
from workers.protocol.bounds import MOST_GRAMMAR

_MOST_CALLS = 16  #: of one answer
_NOTHING: dict[str, Any] = {"properties": {}, "additionalProperties": False}
_BLANKS = r"/\s{0,4}/"


class Unwritable(Exception):
    """A family's calls, or some argument, cannot be written as a grammar."""


def call_grammar(
    family: Family,
    tools: Sequence[Tool],
    added: Mapping[str, int],
    *,
    one: bool,
    reasoning: bool | None,
) -> Grammar:
    """Return the grammar of an answer that calls one of the tools, or with ``one`` only one.

    ``added``: ids of the tokens added to the vocabulary by their texts. ``reasoning``: True where
    the prompt has begun it, None where there is none. Raises Unwritable.
    """
    rules = _Rules(added)
    newer = family.name == "mistral" and "[ARGS]" in added
    form = FORMS.get("mistral_args" if newer else family.name)
    if form is None:
        raise Unwritable("this model's calls have no grammar")
    calls = rules.calls(form, tools, one=one)
    rules.add("start", f"{rules.reasoning(family, begun=reasoning)} {calls}")
    return Grammar(kind="lark", source=rules.text(), param="tool_choice")


def after_reasoning(
    grammar: Grammar, family: Family, added: Mapping[str, int], *, begun: bool
) -> Grammar:
    """Return the grammar of reasoning and then what a grammar matches. Raises Refused."""
    rules = _Rules(added)
    try:
        rules.add("whole", rule_body(grammar))
        rules.add("start", f"{rules.reasoning(family, begun=begun)} whole")
    except Unwritable as error:
        raise refusal(grammar, f"it is longer than {MOST_GRAMMAR} characters") from error
    return Grammar(kind="lark", source=rules.text(), param=grammar.param)


class _Rules:
    """Collects the rules of a grammar."""

    def __init__(self, added: Mapping[str, int]) -> None:
        self._added = added
        self._rules: dict[str, str] = {}
        self._left = MOST_GRAMMAR  #: characters

    def text(self) -> str:
        return "\n".join(f"{name}: {body}" for name, body in self._rules.items())

    def add(self, name: str, body: str) -> str:
        self._left -= len(body)
        if self._left < 0:
            raise Unwritable("the tools are too many, or too long")
        self._rules[name] = body
        return name

    def reasoning(self, family: Family, *, begun: bool | None) -> str:
        """Return what may stand before an answer proper."""
        if begun is None or family.reasoning is None:
            return ""
        (opening, *_), (closing, *_) = family.reasoning
        rest = f"{self._until('thought', closing)} {_BLANKS} {self._literal(family.resumed)}"
        return rest if begun else f"({self._literal(opening)} {rest})?"

    def calls(self, form: CallForm, tools: Sequence[Tool], *, one: bool) -> str:
        names = [self._call(form, number, tool) for number, tool in enumerate(tools)]
        call = self.add("call", " | ".join(names))
        more = ""
        if not (one or form.one):
            more = f"({self._literal(form.between)} {call}){{0,{_MOST_CALLS - 1}}}"
        return f"{self._literal(form.begin)} {call} {more} {self._literal(form.end)}"

    def _call(self, form: CallForm, number: int, tool: Tool) -> str:
        schema = {"type": "object", **(tool.parameters or _NOTHING)}
        if form.argument is None:
            arguments = self.add(f"args_{number}", json_text(schema))
        else:
            arguments = self._arguments(form.argument, f"part_{number}", schema)
        head = self._literal(form.head.replace("{name}", tool.name))
        return self.add(f"call_{number}", f"{head} {arguments} {self._literal(form.tail)}")

    def _arguments(self, form: ArgumentForm, prefix: str, schema: Mapping[str, Any]) -> str:
        """Return the arguments one by one, those that are required first."""
        properties = schema.get("properties") or {}
        required = [key for key in schema.get("required") or () if key in properties]
        others = [key for key in properties if key not in required]
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        written = {
            key: self._argument(form, f"{prefix}_{number}", key, properties[key], shared)
            for number, key in enumerate((*required, *others))
        }
        between = self._literal(form.between)
        text = f" {between} ".join(written[key] for key in required)
        if required or not between:
            return text + "".join(f" ({between} {written[key]})?" for key in others)
        # Any of them may be the first, which has nothing before it. A rule for each place keeps the
        # grammar flat: the library refuses parentheses that are nested deep.
        rest = ""
        for number, key in reversed(list(enumerate(others))):
            begun = f"{written[key]} {rest and f'({between} {rest})?'}"
            rest = self.add(f"{prefix}_from_{number}", f"{begun} | {rest}" if rest else begun)
        return f"{rest}?" if rest else ""

    def _argument(
        self, form: ArgumentForm, name: str, key: str, schema: Any, shared: Mapping[str, Any]
    ) -> str:
        if any(letter in key for letter in '<>="\n') or not (form.raw or key.isidentifier()):
            raise Unwritable(f"the argument {key!r} cannot be written by this model")
        schema = schema if isinstance(schema, dict) else {}
        before, after = form.before, self._literal(form.after)
        if not (form.raw and schema.get("type") == "string"):
            value = f"{self.add(name, json_text({**schema, **shared}))} {after}"
        else:
            before = form.before_text or before
            value = self._text(name, schema, form.mark or form.after)
            if form.mark:
                value = f"{self._literal(form.mark)} {value} {after}"
        return f"{self._literal(before.replace('{key}', key))} {value}"

    def _text(self, name: str, schema: Mapping[str, Any], end: str) -> str:
        """Return a text with what ends it."""
        listed = [schema["const"]] if "const" in schema else schema.get("enum")
        if listed:
            choices = " | ".join(self._literal(str(each)) for each in listed)
            return f"({choices}) {self._literal(end)}"
        return self._until(name, end)

    def _until(self, name: str, end: str) -> str:
        """Return any text up to an end, and the end.

        An added token is never a piece of text: where one is in the end, the text ends with it.
        """
        places = [at for each in self._added if each and (at := end.find(each)) >= 0]
        if places:
            self.add(name, "/(?s:.*)/")
            return f"{name} {self._literal(end[min(places) :])}"
        self.add(f"{name}[suffix={json.dumps(end, ensure_ascii=False)}]", "/(?s:.*)/")
        return name

    def _literal(self, text: str) -> str:
        return literal(text, self._added) if text else ""
