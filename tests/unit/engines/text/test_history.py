"""Tools, calls and reasoning in a history, as chat templates get and render them."""

import json
from functools import lru_cache
from typing import Any

import pytest

from workers.engines.base import Refused
from workers.engines.text.templates import ChatTemplate
from workers.protocol import ChatMessage, Tool, ToolCall

#: as Qwen's and many others: arguments of both kinds, content is searched
BOTH = """{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' -%}
{% if '</think>' in m.content %}{% endif %}
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% endif %}
{{- m.content }}{% for call in m.tool_calls or [] %}{% set f = call.function %}
{{- f.name }}({% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}
{%- endif %}){% endfor %}{% endfor %}"""
#: as Llama's: arguments are written as JSON, whatever they are
OBJECTS = """{% for m in messages %}[{{ m.role }}]{{ m.content }}
{%- for call in m.tool_calls or [] %}{% set f = call.function -%}
{{ f.name }}({{ f.arguments | tojson }}){% endfor %}{% endfor %}"""
#: as Qwen3-Coder's: each argument has its own place
ITEMS = """{% for m in messages %}[{{ m.role }}]{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function.name }}(
{%- for key, value in call.function.arguments.items() %}{{ key }}={{ value }};{% endfor %})
{%- endfor %}{% endfor %}"""
#: as DeepSeek's: arguments are text, and a turn with calls has no content
TEXTS = """{% for m in messages %}{% if m['content'] is none %}[{{ m['role'] }}]
{%- for call in m['tool_calls'] %}{{ call['function']['name'] + '(' + call['function']['arguments']
+ ')' }}{% endfor %}{% else %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"""
#: as Mistral's: ids are checked
NINE = """{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for call in m.tool_calls or [] %}
{%- if call.id | length != 9 %}{{ raise_exception('ids should have length 9!') }}{% endif %}
{{- call.function.name }}({{ call.function.arguments | tojson }}){{ call.id }}{% endfor %}
{%- if m.role == 'tool' %}{{ m.tool_call_id }}{% endif %}{% endfor %}"""
NONE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ALL = [BOTH, OBJECTS, ITEMS, TEXTS, NINE, NONE]


def talk(arguments: str, content: str = "", **more: Any) -> tuple[ChatMessage, ...]:
    call = ToolCall(id="call_1", name="look", arguments=arguments)
    return (
        ChatMessage("user", "hi"),
        ChatMessage("assistant", content, tool_calls=(call,), **more),
        ChatMessage("tool", "seen", tool_call_id="call_1"),
    )


@lru_cache
def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {})


def render(source: str, messages: tuple[ChatMessage, ...], **more: Any) -> str:
    return template(source).render(messages, 10_000, **more)


@pytest.mark.parametrize("source", ALL)
def test_history_with_a_call_is_rendered_whole_by_every_kind_of_template(source: str) -> None:
    text = render(source, talk('{"at": "the sea"}'))
    assert "look" in text
    assert "at" in text
    assert "the sea" in text
    assert "seen" in text
    assert "None" not in text
    assert '\\"' not in text


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("arguments", ["", "null", " ", "{}"])
def test_history_with_a_call_without_arguments_has_an_empty_object(
    source: str, arguments: str
) -> None:
    text = render(source, talk(arguments))
    assert "null" not in text
    assert "None" not in text
    assert "look(" in text or '{"name": "look", "arguments": ' in text


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("arguments", ['{"at": "the se', "[1, 2]", "the sea", '"x"', "[" * 2000])
def test_history_with_broken_arguments_survives(source: str, arguments: str) -> None:
    text = render(source, talk(arguments))
    assert "look" in text
    assert "seen" in text
    assert arguments in text or json.dumps(arguments)[1:-1] in text


def test_history_keeps_content_and_reasoning_beside_a_call() -> None:
    text = render(BOTH, talk("{}", "I look.", reasoning="Where?"))
    assert "<think>Where?</think>I look.look({})" in text.replace("\n", "")
    assert "Where?" not in render(OBJECTS, talk("{}", reasoning="Where?"))


def test_history_s_ids_fit_templates_that_require_nine_characters() -> None:
    text = render(NINE, talk("{}"))
    id = text.rpartition("[tool]seen")[2]
    assert len(id) == 9
    assert id.isalnum()
    assert f"look({{}}){id}" in text
    assert "call_1" in render(NINE.replace("!= 9", "< 1"), talk("{}"))


def test_history_tells_templates_which_tool_has_answered() -> None:
    assert render("{{ messages[2].name }}{# tool_calls #}", talk("{}")) == "look"


TOOL = Tool(name="look", parameters={"type": "object", "properties": {"at": {"type": "string"}}})


def test_template_is_given_tools_and_further_variables() -> None:
    source = "{{ tools | tojson }}{{ enable_thinking }}{{ messages | length }}"
    assert template(source).variables == {"tools", "enable_thinking", "messages"}
    text = template(source).render(
        talk("{}"), 10_000, tools=[TOOL], variables={"enable_thinking": False, "messages": []}
    )
    tools, _, rest = text.rpartition("]")
    assert rest == "False3"
    assert json.loads(f"{tools}]")[0]["function"]["name"] == "look"


def test_template_that_never_ends_is_refused_when_it_is_tried_with_calls() -> None:
    source = "{# tool_calls #}{{ raise_exception('no tools here') if messages | length > 1 }}"
    with pytest.raises(Refused, match="no tools here"):
        render(source, talk("{}"))
