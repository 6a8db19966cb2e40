"""Finds the chat templates of a model, wherever its files have them, and chooses one by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from workers.engines.text.templates import BrokenTemplate, ChatTemplate

_DEFAULT, _FOR_TOOLS = "default", "tool_use"  #: as the library names them
_MOST_BYTES = 8_000_000  #: of a file of templates

#: Of models that know no turns, and whose files have no template: the pictures come first, then all
#: texts. What the library's processor puts between them and at the end is put here where there are
#: no pictures for it.
_PALIGEMMA = """\
{%- set seen = namespace(pictures=false, text='') -%}
{%- for message in messages -%}
{%- if seen.text -%}{%- set seen.text = seen.text + '\n' -%}{%- endif -%}
{%- if message['content'] is string -%}{%- set seen.text = seen.text + message['content'] -%}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set seen.pictures = true -%}{{ '<image>' }}
{%- else -%}{%- set seen.text = seen.text + part['text'] -%}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endfor -%}
{%- if seen.pictures -%}{{ seen.text }}
{%- else -%}{{ bos_token + seen.text + '\n' }}{%- endif -%}"""
#: By the types of models; the store says of the same ones that they chat.
WITHOUT_TURNS = {"paligemma": _PALIGEMMA}

Template = ChatTemplate | BrokenTemplate


class ChatTemplates:
    """Holds a model's templates; one may be for requests that bring tools."""

    def __init__(self, by_name: Mapping[str, Template]) -> None:
        """``by_name`` holds at least one."""
        self._by_name = by_name
        self._only = next(iter(by_name.values())) if len(by_name) == 1 else None

    def choose(self, *, tools: bool = False) -> Template:
        """Return the template for a request."""
        if tools and _FOR_TOOLS in self._by_name:
            return self._by_name[_FOR_TOOLS]
        chosen = self._by_name.get(_DEFAULT) or self._only
        names = ", ".join(map(repr, self._by_name))
        return chosen or BrokenTemplate(f"is missing: there are {names}, and none is the default")

    @property
    def default(self) -> ChatTemplate | None:
        """Return the template for requests without tools, if it can be used."""
        chosen = self.choose()
        return chosen if isinstance(chosen, ChatTemplate) else None

    @property
    def literals(self) -> str:
        """Return all text that stands in the templates."""
        usable = (each for each in self._by_name.values() if isinstance(each, ChatTemplate))
        return "\0".join(each.literals for each in usable)


def chat_templates(tokenizer: Any, folder: Path, model_type: str = "") -> ChatTemplates | None:
    """Return a model's templates; None if it has none, nor one of ours for its type.

    The library has read ``chat_template.jinja``, those beside it and the tokenizer's configuration;
    ``chat_template.json``, where models of several inputs used to have theirs, it has not.
    """
    found = tokenizer.chat_template or _of_json(folder / "chat_template.json")
    found = found or WITHOUT_TURNS.get(model_type)
    if not found:
        return None
    sources = found if isinstance(found, dict) else {_DEFAULT: found}
    special = tokenizer.special_tokens_map
    return ChatTemplates({name: _compiled(source, special) for name, source in sources.items()})


def _of_json(path: Path) -> str | dict[str, str] | None:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    try:
        found = json.loads(path.read_text())["chat_template"]
        return found if isinstance(found, str) else {e["name"]: e["template"] for e in found}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _compiled(source: Any, special_tokens: dict[str, Any]) -> Template:
    if not isinstance(source, str):
        return BrokenTemplate("is not a text.")
    try:
        return ChatTemplate(source, special_tokens)
    except jinja2.TemplateError as error:
        return BrokenTemplate.of(error)
