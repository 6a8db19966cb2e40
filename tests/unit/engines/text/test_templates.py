"""Chat templates render as the library does, within bounds of time and length."""

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


def test_template_of_the_demo_renders_as_the_library_does() -> None:
    assert render(TEMPLATE) == "<s>[user]hello\n[assistant]"


def test_template_operators_work() -> None:
    assert render("{% set x = 'a' + 'b' * 3 %}{{ x ~ 1 }} {{ 7 % 4 }}") == "abbb1 3"
    assert render("{{ ['a', 'b'] | join(', ') }}{{ 'a.b'.replace('.', '!') }}") == "a, ba!b"
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hello"}]'
    assert render("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}") == "2"
    assert render("{{ '%s:%02d' % ('a', 2) }}{{ '{} {:>3}'.format('b', 3) }}") == "a:02b   3"
    assert render("{{ '-'.join(['a', 'b']) }}{{ 'a' | indent(2) }}") == "a-ba"


def test_template_s_own_refusal_is_the_client_s_to_read() -> None:
    with pytest.raises(Refused, match="roles must alternate") as refusal:
        render("{{ raise_exception('roles must alternate') }}")
    assert (refusal.value.code, refusal.value.param) == ("INVALID_REQUEST", "messages")
    with pytest.raises(Refused, match="messages: 5"):
        render("{{ raise_exception(5) }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",  # too deep for the library's compiler
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,  # too deep for Python's
        "{% autoescape true %}{% endautoescape %}",
        "{{ 1 }}" * 200_000,
    ],
    ids=["syntax", "brackets", "loops", "autoescape", "length"],
)
def test_template_that_cannot_be_compiled_is_said_to_be_so(source: str) -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate(source, {})


MANY = "{% for i in range(99999) %}"
END = "{% endfor %}"


def test_template_output_that_is_too_long_is_cut_off() -> None:
    endless = MANY + MANY + "aaaaaaaa" + END + END
    with pytest.raises(Refused) as refusal:
        render(endless)
    assert refusal.value.code == "CONTEXT_LENGTH_EXCEEDED"


def test_template_is_not_rendered_for_messages_that_are_too_long() -> None:
    template = ChatTemplate("{{ raise_exception('rendered') }}", {})
    with pytest.raises(Refused) as refusal:
        template.render((ChatMessage("user", "a" * 600), ChatMessage("user", "b" * 600)), 1000)
    assert refusal.value.code == "CONTEXT_LENGTH_EXCEEDED"


def test_template_time_limit_ends_a_loop_and_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.1)
    for _ in range(3):
        with pytest.raises(Refused, match="takes too long") as refusal:
            render(MANY * 3 + END * 3)
        assert refusal.value.code == "INVALID_REQUEST"
    monkeypatch.undo()
    assert render("{{ messages[0].content }}") == "hello"
