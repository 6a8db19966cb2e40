"""Finds the format of a model's answers: by the setting, its response template or its files."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import regex
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplate,
    load_response_template,
)

from workers.engines.text.parsing.families import FAMILIES, Family
from workers.engines.text.parsing.region_parser import (
    REASONING_FIELDS,
    RegionParser,
    bounded,
)

log = logging.getLogger(__name__)

_LONGEST_PREFIX = 65_536  #: characters of a prompt in which a pattern looks for the answer's start


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """Describes the format of a model's answers; ``family`` is None if its files bring a
    template."""

    source: dict[str, Any]  #: with all fields
    family: Family | None
    reasons: bool  #: it may write reasoning
    calls: bool  #: it may write calls
    kept: frozenset[int]  #: ids of special tokens that markers hold
    _templates: dict[bool, ResponseTemplate] = field(default_factory=dict, init=False, repr=False)

    def template(self, *, tools: bool) -> ResponseTemplate:
        """Return the template of responses; without ``tools`` calls are content."""
        if tools not in self._templates:
            self._templates[tools] = self._loaded(tools=tools)
        return self._templates[tools]

    def _loaded(self, *, tools: bool) -> ResponseTemplate:
        if self.family is not None:
            wanted = self.family.template(reasoning=self.reasons, tools=tools)
        else:
            fields = {**self.source["fields"]}
            if not tools:
                fields.pop("tool_calls", None)
            wanted = {**self.source, "fields": fields}
        return bounded(load_response_template(wanted))

    def reasons_after(self, begun: str) -> bool:
        """Return whether an answer that has begun so continues with reasoning."""
        return RegionParser(self.template(tools=False), begun).region in REASONING_FIELDS

    def begun(self, prompt: str) -> str:
        """Return what a prompt has already written of the answer."""
        anchors = self.source.get("start_anchor")
        if anchors is None:
            return self._begun_by_pattern(prompt)
        listed = [anchors] if isinstance(anchors, str) else anchors
        ends = [at + len(each) for each in listed if (at := prompt.rfind(each)) >= 0]
        if ends:
            return prompt[max(ends) :]
        return self._open_reasoning(prompt)

    def _begun_by_pattern(self, prompt: str) -> str:
        end = prompt[-_LONGEST_PREFIX:]
        found = -1
        try:
            pattern = regex.compile(self.source["start_anchor_pattern"], regex.DOTALL)
            for match in pattern.finditer(end, timeout=0.5):
                found = match.end()
        except TimeoutError:
            log.warning("the response template's start_anchor_pattern takes too long")
        return end[found:] if found >= 0 else self._open_reasoning(prompt)

    def _open_reasoning(self, prompt: str) -> str:
        """Return the marker of reasoning if the prompt ends with it, where no anchor was found."""
        end = prompt[-256:].rstrip()
        for marker in self._markers(REASONING_FIELDS):
            if end.endswith(marker):
                return marker
        return ""

    def _markers(self, names: Collection[str]) -> list[str]:
        found: list[str] = []
        for name, one in self.source["fields"].items():
            if name in names:
                opens = one.get("open", ())
                found += [opens] if isinstance(opens, str) else opens
        return found


def response_format(
    tokenizer: Any, source: str | None, model_type: str, wanted: str | None
) -> ResponseFormat | None:
    """Find the format of a model's responses; None where its text is all that there is.

    ``source``: its chat template; ``wanted``: the setting, a family's name, ``none``, or None.
    """
    if wanted == "none":
        return None
    if wanted is None and (own := _own(tokenizer)) is not None:
        return own
    family = FAMILIES[wanted] if wanted else recognised(source or "", model_type)
    return None if family is None else _format(tokenizer, source, family, reasons=bool(wanted))


def prompted_format(tokenizer: Any, source: str | None) -> ResponseFormat:
    """Return the format that the prompt asks calls in, for a template that takes no tools."""
    return _format(tokenizer, source, FAMILIES["hermes"], reasons=False)


def _format(tokenizer: Any, source: str | None, family: Family, *, reasons: bool) -> ResponseFormat:
    """Make a family's format. ``reasons``: it reasons, whether its files know the marker or not."""
    known = family.reasoning is not None
    reasons = known and (reasons or _reasons(tokenizer, family, source))
    template = family.template(reasoning=reasons, tools=True)
    return ResponseFormat(
        source=template,
        family=family,
        reasons=reasons,
        calls=family.tools is not None,
        kept=_special_in(tokenizer, template),
    )


def recognised(source: str, model_type: str) -> Family | None:
    """Return the family of a chat template, else that of a kind of model whose template has tools.

    A template that says nothing of calls belongs to a model that was not taught any.
    """
    for family in FAMILIES.values():
        if any(all(mark in source for mark in marks) for marks in family.marks):
            return family
    if "tools" in source:
        return next((each for each in FAMILIES.values() if model_type in each.model_types), None)
    return None


def _own(tokenizer: Any) -> ResponseFormat | None:
    """Return the format that a model's files define, unless it is broken."""
    template = getattr(tokenizer, "response_template", None)
    if template is None:
        return None
    try:
        load_response_template(template)
        kept = _special_in(tokenizer, template)
    except Exception as error:  # noqa: BLE001  untrusted files
        log.warning("the model's response template is not valid: %s", type(error).__name__)
        return None
    fields = template["fields"]
    return ResponseFormat(
        source=template,
        family=None,
        reasons=not REASONING_FIELDS.isdisjoint(fields),
        calls="tool_calls" in fields,
        kept=kept,
    )


def _reasons(tokenizer: Any, family: Family, source: str | None) -> bool:
    """Return whether a model knows its family's marker of reasoning."""
    assert family.reasoning is not None
    vocabulary = tokenizer.get_added_vocab()
    return any(mark in vocabulary or mark in (source or "") for mark in family.reasoning[0])


def _special_in(tokenizer: Any, template: dict[str, Any]) -> frozenset[int]:
    """Return the ids of special tokens that a template's markers hold."""
    markers = [text.replace("\\", "") for text in _strings(template["fields"])]
    names = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return frozenset(
        token for token, name in names if any(str(name) in marker for marker in markers)
    )


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
