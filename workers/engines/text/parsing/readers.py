"""Reads calls of tools, by a class for each form in which models write them; all are linear in the
text."""

import ast
import json
import warnings
from typing import Any

from transformers.utils.chat_parsing.content_parsers import parse_content

from workers.engines.text.parsing.calls import (
    Call,
    Schemas,
    call,
    calls_of_json,
    object_of,
    typed,
)

_LONGEST_CODE = 100_000  #: characters of calls written as Python
_WORDS = {"true": True, "false": False, "null": None}


def read_json(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read an object with a name and arguments, or a list of them."""
    return calls_of_json(json.loads(text))


def read_json_sequence(text: str, schemas: Schemas) -> list[Call] | None:
    """Read objects one after another, with blanks, commas or semicolons between them.

    Llama writes them without any marker, so those alone count that name a tool of the request.
    """
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n;,":
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
    calls = calls_of_json(values) if values else None
    return calls if calls and all(each.name in schemas for each in calls) else None


def read_python(text: str, schemas: Schemas) -> list[Call] | None:
    """Read ``[f(a=1), g(b="x")]``; those alone count that name a tool of the request."""
    if len(text) > _LONGEST_CODE:
        return None
    # Python warns of escapes in strings that it does not know.
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(text.strip(), mode="eval").body
    items = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = [_python_call(item) for item in items]
    found = [each for each in calls if each is not None and each.name in schemas]
    return found if found and len(found) == len(calls) else None


def _python_call(node: ast.expr) -> Call | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    values = {word.arg: _python_value(word.value) for word in node.keywords}
    return None if None in values else call(ast.unparse(node.func), values)


def _python_value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_python_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                ast.literal_eval(key): _python_value(value)
                for key, value in zip(keys, values, strict=True)
                if key is not None
            }
        case _:
            return ast.literal_eval(node)


def read_functions(text: str, schemas: Schemas) -> list[Call] | None:
    """Read ``<function=f><parameter=a>1</parameter></function>``, one or more."""
    return _read_tags(
        text, schemas, ("<function=", ">", "</function>"), ("<parameter=", ">", "</parameter>")
    )


def read_invokes(text: str, schemas: Schemas) -> list[Call] | None:
    """Read ``<invoke name="f"><parameter name="a">1</parameter></invoke>``, one or more."""
    plain = text.replace("<｜DSML｜", "<").replace("</｜DSML｜", "</")
    return _read_tags(
        plain,
        schemas,
        ('<invoke name="', '">', "</invoke>"),
        ('<parameter name="', ">", "</parameter>"),
    )


_Tag = tuple[str, str, str]  #: how it begins, how its head ends, how it ends


def _read_tags(text: str, schemas: Schemas, outer: _Tag, inner: _Tag) -> list[Call] | None:
    calls: list[Call] = []
    at = text.find(outer[0])
    while at >= 0:
        head = text.find(outer[1], at)
        name = text[at + len(outer[0]) : head].strip('" \n')
        arguments: dict[str, Any] = {}
        at = head + len(outer[1])
        end = text.find(outer[2], at)
        if head < 0 or end < 0:
            return None
        while (begin := text.find(inner[0], at)) >= 0 and begin < end:
            key_end = text.find(inner[1], begin)
            value_end = _value_end(text, key_end, inner, outer[2]) if key_end >= 0 else -1
            if value_end < 0:
                return None
            key, as_text = _key(text[begin + len(inner[0]) : key_end])
            value = _without_newlines(text[key_end + len(inner[1]) : value_end])
            schema = schemas.get(name, {}).get(key)
            arguments[key] = value if as_text else typed(value, schema, guess=as_text is False)
            at = value_end + len(inner[2])
            if end < at and (end := text.find(outer[2], at)) < 0:
                return None
        made = call(name, arguments)
        if made is None:
            return None
        calls.append(made)
        at = text.find(outer[0], end)
    return calls or None


def _value_end(text: str, start: int, inner: _Tag, outer_end: str) -> int:
    """Return where a value ends: at the closing tag that is followed by another tag.

    A value may hold a closing tag, as code about tags does.
    """
    end = text.find(inner[2], start)
    while end >= 0:
        after = text[end + len(inner[2]) : end + len(inner[2]) + 64].lstrip()
        if after.startswith((inner[0], outer_end)):
            return end
        end = text.find(inner[2], end + 1)
    return -1


def _key(head: str) -> tuple[str, bool | None]:
    """Split ``a" string="true`` into a name and whether its value is text; None: not said."""
    name, quote, rest = head.strip().partition('"')
    if not quote:
        return name, None
    return name, True if 'string="true"' in rest else False if "string=" in rest else None


def _without_newlines(value: str) -> str:
    """Drop the newline after the opening tag, and the one before the closing tag."""
    return value.removeprefix("\n").removesuffix("\n")


def read_glm(text: str, schemas: Schemas) -> list[Call] | None:
    """Read ``f\\n<arg_key>a</arg_key>\\n<arg_value>1</arg_value>``."""
    name, *pairs = text.split("<arg_key>")
    name = name.strip()
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, closed, rest = pair.partition("</arg_key>")
        between, opened, rest = rest.partition("<arg_value>")
        value, ended, _ = rest.rpartition("</arg_value>")
        if not (closed and opened and ended) or between.strip():
            return None
        key = key.strip()
        arguments[key] = typed(value, schemas.get(name, {}).get(key), guess=True)
    made = None if "<" in name else call(name, arguments)
    return None if made is None else [made]


def read_mistral(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``[{...}, ...]``, or ``f[ARGS]{...}`` with its marker before each further one."""
    calls: list[Call] = []
    for part in text.split("[TOOL_CALLS]"):
        plain = part.strip()
        if plain.startswith(("[{", "{")):
            found = calls_of_json(json.loads(plain))
        else:
            name, _, arguments = plain.partition("[ARGS]" if "[ARGS]" in plain else "{")
            name, _, id = name.partition("[CALL_ID]")
            arguments = arguments if "[ARGS]" in plain else "{" + arguments
            made = call(name, object_of(arguments), id)
            found = None if made is None else [made]
        if found is None:
            return None
        calls += found
    return calls


def read_deepseek(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``function<sep>f\\n```json\\n{...}\\n``` `` (V3, R1) or ``f<sep>{...}`` (V3.1)."""
    head, found, tail = text.partition("<｜tool▁sep｜>")
    name, fence, body = tail.partition("```json")
    if not fence:
        name, body = head, tail
    made = call(name.strip(), object_of(body.strip().removesuffix("```"))) if found else None
    return None if made is None else [made]


def read_kimi(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``functions.f:0<marker>{...}``; what is before the marker is the call's id, too."""
    id, found, body = text.partition("<|tool_call_argument_begin|>")
    id = id.strip()
    name = id.removeprefix("functions.").rpartition(":")[0]
    made = call(name, object_of(body), id) if found else None
    return None if made is None else [made]


def read_harmony(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``f ... <|message|>{...}``; between them is what kind of text the arguments are."""
    head, found, body = text.partition("<|message|>")
    name = head.partition("<|")[0].split()
    made = call(name[0], object_of(body)) if found and name else None
    return None if made is None else [made]


def read_gemma(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``call:f{a:<|"|>x<|"|>}``, whose strings have marks of their own."""
    return _read_gemma(text, '<|"|>')


def read_function_gemma(text: str, _schemas: Schemas) -> list[Call] | None:
    """Read ``call:f{a:<escape>x<escape>}``."""
    return _read_gemma(text, "<escape>")


def _read_gemma(text: str, mark: str) -> list[Call] | None:
    name, brace, rest = text.strip().removeprefix("call:").partition("{")
    options = {"unquoted_keys": True, "string_delims": [[mark, mark]]}
    made = call(name, parse_content(brace + rest, "json", options)) if brace else None
    return None if made is None else [made]
