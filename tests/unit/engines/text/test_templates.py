"""Chat templates as hostile input: each class of attack ends quickly, in a refusal."""

import time

import jinja2
import pytest

from tests.support.models.text import TEMPLATE
from workers.engines.base import Refused
from workers.engines.text import templates
from workers.engines.text.templates import ChatTemplate
from workers.protocol import ChatMessage

HELLO = (ChatMessage("user", "hello"),)


def render(source: str, limit: int = 100_000) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO, limit)


def test_a_plain_template_renders_as_the_library_does() -> None:
    assert render(TEMPLATE) == "<s>[user]hello\n[assistant]"


def test_what_templates_commonly_use_works() -> None:
    assert render("{% set x = 'a' + 'b' * 3 %}{{ x ~ 1 }} {{ 7 % 4 }}") == "abbb1 3"
    assert render("{{ ['a', 'b'] | join(', ') }}{{ 'a.b'.replace('.', '!') }}") == "a, ba!b"
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hello"}]'
    assert render("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}") == "2"
    assert render("{{ '%s:%d' % ('a', 2) }}{{ '{} {}'.format('b', 3) }}") == "a:2b 3"
    assert render("{{ '-'.join(['a', 'b']) }}{{ 'a' | indent(2) }}") == "a-ba"


def test_a_template_s_own_refusal_is_the_client_s_to_read() -> None:
    with pytest.raises(Refused, match="roles must alternate") as refusal:
        render("{{ raise_exception('roles must alternate') }}")
    assert (refusal.value.code, refusal.value.param) == ("INVALID_REQUEST", "messages")


def test_a_template_with_a_syntax_error_does_not_compile() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate("{% for %}", {})


HOSTILE = {
    "power": "{{ 9**(9**9) }}",
    "repetition": "{{ ('A' * 10**10) | length }}",
    "repetition by a variable": "{% set n = 99999999999 %}{{ ('A' * n) | length }}",
    "list repetition": "{{ ([1] * 99999999999) | length }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "squaring": "{% set ns = namespace(x=99) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "format by %": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "replace": "{% set x = 'a' * 3000000 %}{{ x.replace('a', x) }}",
    "join": "{% set x = 'a' * 3000000 %}{{ range(99999) | join(x) }}",
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_at_once(source: str) -> None:
    started = time.monotonic()
    with pytest.raises((Refused, jinja2.TemplateError)):
        render(source)
    assert time.monotonic() - started < 1.5


def test_a_long_output_is_cut_off() -> None:
    endless = (
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaa{% endfor %}{% endfor %}"
    )
    with pytest.raises(Refused) as refusal:
        render(endless)
    assert refusal.value.code == "CONTEXT_LENGTH_EXCEEDED"


def test_an_endless_loop_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.1)
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(Refused) as refusal:
        render(loops)
    assert refusal.value.code == "INVALID_REQUEST"
