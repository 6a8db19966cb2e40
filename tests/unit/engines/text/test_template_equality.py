"""Chat templates render as in the library: the idioms of published ones, in both environments."""

from typing import Any

import pytest

from workers.engines.text.template_sandbox import BoundedEnvironment, library_environment

CALL = {"id": "c1", "function": {"name": "look", "arguments": {"city": "Köln", "days": 3}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": 'Looks <out> & says "how" it\'s.\nTwice.',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where."},
                    "days": {"type": ["integer", "null"], "enum": [1, 2, None]},
                },
                "required": ["city"],
            },
        },
    }
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    {"role": "user", "content": "Thanks \N{GRINNING FACE}"},
]
IDIOMS = {
    "system message first": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = "
    "messages[1:] %}{% set system = messages[0]['content'] | trim %}{% else %}{% set loop_messages "
    "= messages %}{% endif %}"
    "{{ bos_token }}{% for message in loop_messages %}<|{{ message.role }}|>"
    "{% if loop.first and system is defined %}{{ '<<' + system + '>>\n' }}{% endif %}{% endfor %}",
    "content parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% elif 'image' in "
    "part.type %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}",
    "roles": "{% for m in messages if m.role not in ['tool', 'system'] %}"
    "{{ loop.index0 ~ ':' ~ m['role'] | upper ~ (', ' if not loop.last else '') }}{% endfor %}",
    "thinking": "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}|"
    "{{ m.content.split('</think>')[-1].strip() }}{% endif %}{% endfor %}",
    "last user message": "{% set ns = namespace(last=-1, multi=true) %}{% for m in"
    " messages[::-1] %}"
    "{% set index = (messages | length - 1) - loop.index0 %}{% if ns.multi and m.role == 'user' %}"
    "{% set ns.multi = false %}{% set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}",
    "tools as JSON": "{% for t in tools %}{{ t | tojson }}{{ t.function | tojson(indent=4) }}"
    "{{ t | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}{% endfor %}",
    "tool calls": "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set c = c.function %}"
    '{{ \'{"name": "\' ~ c.name ~ \'", "arguments": \' }}{% if c.arguments is string %}'
    "{{ c.arguments }}{% else %}{{ c.arguments | tojson | safe }}{% endif %}}{% for k, v in "
    "c.arguments | items %}{{ k }}={{ v | string if v is not string else v }};{% endfor %}"
    "{% endfor %}{% endfor %}",
    "types of parameters": "{% macro kind(p) %}{% if p.type is iterable and p.type is not string %}"
    "{{ p.type | map('upper') | list | join(' | ') }}{% elif p.enum is defined %}"
    "{{ p['enum'] | map('tojson') | join(', ') }}{% else %}{{ p.type | capitalize }}{% endif %}"
    "{% endmacro %}{% for name, p in tools[0].function.parameters.properties | dictsort %}"
    "{{ name }}: {{ kind(p) }}"
    "{{ '?' if name not in tools[0]['function']['parameters']['required'] }}"
    ", {{ p.description | default('none', true) | title | replace('.', '!') }}{% endfor %}",
    "macros that call macros": "{% macro walk(x, depth=0) -%}{% if x is mapping %}{{ '{' }}{% for "
    "k in x %}{{ k }}:{{ walk(x[k], depth=depth + 1) }}{{ ',' if not loop.last }}{% endfor %}"
    "{{ '}' }}{% elif x is sequence and x is not string %}{% for y in x %}{{ walk(y, depth) }};"
    "{% endfor %}{% else %}{{ '%s@%d' % (x, depth) }}{% endif %}{%- endmacro %}{{ walk(tools) }}",
    "blocks": "{% set text %}{% for m in messages %}{{ m.role }}\n{% endfor %}{% endset %}"
    "{% filter upper %}{{ text | indent(2) }}{% endfilter %}{% macro box() %}[{{ caller() }}]"
    "{% endmacro %}{% call box() %}in{% endcall %}",
    "selection": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('tool_calls', 'defined') | map(attribute='role') | unique | list }}"
    "{{ messages | map(attribute='role') | select('in', ['user', 'tool']) | join(',') }}"
    "{{ [3, 1, 2] | sort(reverse=true) | first }}{{ [3, 1] | max }}{{ [[1], [2]] | sum(start=[]) }}"
    "{{ [1, 2.5] | sum }}{{ [{'n': 2}, {'n': 3}] | sum(attribute='n') }}{{ 'abc' | reverse }}",
    "numbers": "{{ 7 // 2 }}{{ 7 / 2 }}{{ -7 % 4 }}{{ '12' | int + 1 }}{{ 'x' | int(5) }}{{ 1.25 | "
    "round(1) }}{{ -3 | abs }}{{ '2.5' | float }}{{ 5 is divisibleby 5 }}{{ 3 > 2 > 1 }}",
    "formats": "{{ '{0}-{name:>4}|{1!r}'.format('a', 'b', name='c') }}"
    "{{ '%5.2f|%s|%%' % (1.5, [1]) }}"
    "{{ '%s and %s' | format('a', 'b') }}{{ 'a' | center(5) }}"
    "{{ 'a'.ljust(3, '.') }}{{ '7'.zfill(3) }}",
    "markup": "{{ ('<' | e) + '<b>' }}{{ '<' | escape ~ '>' }}{{ ('<' | safe) + '&' }}",
    "control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% if m.role == 'tool' %}{% break %}{% endif %}{{ m.role }}{{ loop.cycle('a', 'b') }}"
    "{% if loop.changed(m.role) %}!{% endif %}"
    "{{ loop.previtem.role if loop.previtem }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "recursive loops": "{% for x in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ x.n }}"
    "({{ loop(x.c) }}){% endfor %}",
    "tuples": "{% set a, b = 'x', ('y', 'z') %}{{ a }}"
    "{{ b[1] }}{% for k, v in [('p', 1), ('q', 2)] %}"
    "{{ k }}{{ v }}{% endfor %}{{ (1,) }}{{ () }}{{ {} }}{{ [] }}",
    "dictionaries": "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ d.get('c', 3) }}"
    "{{ d.items() | list }}"
    "{{ d.keys() | list }}{{ d.values() | sum }}{{ {'a': messages[0].role}.a }}{{ 'b' in d }}",
    "variable arguments": "{% macro m() %}{{ varargs | join('+') }}{{ kwargs | dictsort }}"
    "{% endmacro %}{{ m('a', 'b', c=1) }}",
    "joiner": "{% set comma = joiner(', ') %}{% for m in messages %}{{ comma() }}{{ m.role }}"
    "{% endfor %}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ messages[0].nothing or 'none' }}"
    "{{ (nothing if false) }}",
    "date": "{{ strftime_now('%Y') | length }}",
}


@pytest.mark.parametrize("source", IDIOMS.values(), ids=IDIOMS.keys())
def test_template_idiom_renders_as_in_the_library(source: str) -> None:
    library = library_environment()
    given = {
        "messages": MESSAGES,
        "tools": TOOLS,
        "bos_token": "<s>",
        "add_generation_prompt": True,
    }
    expected = library.from_string(source).render(given)
    assert expected  # the idiom is one
    assert BoundedEnvironment(library).from_string(source).render(given) == expected


def test_template_functions_and_filters_are_known_to_the_library() -> None:
    """A name that the library no longer has would silently drop out of the lists."""
    environment = BoundedEnvironment(library_environment())
    assert set(environment.filters) == set(library_environment().filters)
    assert set(environment.tests) == set(library_environment().tests)
