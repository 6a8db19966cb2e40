"""Chat templates as hostile input: each class of attack ends quickly, in a refusal."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import jinja2
import pytest

from workers.engines.base import Refused
from workers.engines.text import templates
from workers.engines.text.templates import ChatTemplate
from workers.protocol import ChatMessage

HELLO = (ChatMessage("user", "hello"),)
SOON = 5.0  #: seconds of computing: the limit, one operation at its bound, and a busy machine


def render(source: str, limit: int = 100_000) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO, limit)


BIG = "{% set x = 'a' * 15000000 %}"
NS = "{% set ns = namespace(x=[1], y=[1]) %}"
TIMES = "{% for i in range(60) %}"
MANY = "{% for i in range(99999) %}"
END = "{% endfor %}"
HOSTILE = {
    "power": "{{ 9**(9**9) }}",
    "repetition": "{{ ('A' * 9999999999) | length }}",
    "repetition by a variable": "{% set n = 99999999999 %}{{ ('A' * n) | length }}",
    "list repetition": "{{ ([1] * 99999999999) | length }}",
    "doubling": "{% set ns = namespace(x='ab') %}"
    + TIMES
    + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='ab') %}"
    + TIMES
    + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by a block": "{% set ns = namespace(x='ab') %}"
    + TIMES
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by a macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}"
    "{% set ns = namespace(x='ab') %}" + TIMES + "{% set ns.x = m(ns.x) %}{% endfor %}",
    "squaring": "{% set ns = namespace(x=99) %}"
    + TIMES
    + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "number by base": "{% set n = ('f' * 9000000) | int(base=16) %}{{ n // 3 }}",
    "rounding": "{{ 5 | round(-999999999) }}",
    "rounding up": "{{ 5 | round(precision=999999999, method='ceil') }}",
    "bytes": "{{ (1).to_bytes(9999999999, 'big') }}",
    "encoded": "{{ 'a'.encode().center(9999999999) }}",
    "% width": "{{ '%9999999999d' % 1 }}",
    "% width after a key": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "% width after a key with %": "{{ '%(a%b)9999999999d' % {'a%b': 1} }}",
    "% width after a key with brackets": "{{ '%(a(b))9999999999d' % {'a(b)': 1} }}",
    "% width by value": "{{ '%*d' % (9999999999, 1) }}",
    "% precision": "{{ '%.9999999999f' % 1.5 }}",
    "% one long value often": BIG + "{{ ('%(a)s' * 100000) % {'a': x} }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format filter by map": "{{ ['%9999999999d'] | map('format', 1) | list }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "format width by value": "{{ '{:{w}}'.format(1, w=9999999999) }}",
    "format of a long value often": BIG + "{{ ('{0}' * 100000).format(x) }}",
    "format_map": BIG + "{{ ('{a}' * 100000).format_map({'a': x}) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ '\t'.expandtabs(tabsize=9999999999) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "replace": BIG + "{{ x.replace('a', x) }}",
    "replace nothing": BIG + "{{ x | replace('', x) }}",
    "replace by names": BIG + "{{ x | replace(old='a', new=x) }}",
    "join": BIG + "{{ range(99999) | join(x) }}",
    "join by name": BIG + "{{ range(99999) | join(d=x) }}",
    "join what is not there yet": BIG + "{{ x.join(range(99999) | map('string')) }}",
    "join one long value often": BIG + "{{ ([x] * 100) | join }}",
    "indent by spaces": "{% set x = '\n' * 2000000 %}{{ x | indent(4000) }}",
    "indent by a text": "{% set x = '\n' * 2000000 %}{{ x | indent('a' * 4000000) }}",
    "strip": BIG + "{{ x.strip('b' * 9000000 + 'a') }}",
    "trim": BIG + "{{ x | trim('b' * 9000000 + 'a') }}",
    "rfind": BIG + "{{ x.rfind('ab' + 'a' * 1000000) }}",
    "rsplit": BIG + "{{ x.rsplit('ab' + 'a' * 1000000) }}",
    "split": BIG + "{{ x.split('a') | length }}",
    "tojson, 27 times": "{{ '\"'" + " | tojson" * 27 + " }}",
    "tojson, 60 times": "{{ '\"'" + " | tojson" * 60 + " }}",
    "tojson, indented": "{{ range(9999) | list | tojson(indent=999999999) }}",
    "tojson, separated": BIG + "{{ range(99999) | list | tojson(separators=(x, x)) }}",
    "tojson, escaped": "{{ ('\N{GRINNING FACE}' * 15000000) | tojson(ensure_ascii=true) }}",
    "sum of lists": "{{ ([range(99999) | list] * 250) | sum(start=[]) | length }}",
    "long values that are dropped": BIG + "{{ range(99999) | map('replace', '1', x) | list }}",
    "long values that are kept": "{% set ns = namespace(l=[]) %}"
    + MANY
    + "{% set y = 'a' * 9000000 ~ i %}{% set ns.l = ns.l + [namespace(x=y)] %}{% endfor %}",
    "long output of a macro": BIG
    + "{% macro m() %}"
    + MANY
    + "{{ x }}{% endfor %}{% endmacro %}{{ m() }}",
    "list in itself": NS + TIMES + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "tuple in itself": NS + TIMES + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {}[ns.x] }}",
    "dict in itself": NS
    + TIMES
    + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "dict() in itself": NS + TIMES + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "views in themselves": NS
    + TIMES
    + "{% set ns.x = {'a': ns.x, 'b': ns.x}.items() %}{% endfor %}{{ ns.x }}",
    "varargs in themselves": NS
    + "{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
    + TIMES
    + "{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "kwargs in themselves": NS
    + "{% macro m() %}{% set ns.x = kwargs %}{% endmacro %}"
    + TIMES
    + "{{ m(a=ns.x, b=ns.x) }}{% endfor %}{{ ns.x }}",
    "comparison": NS
    + TIMES
    + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "depth": "{% set ns = namespace(x=()) %}"
    + MANY
    + "{% set ns.x = (ns.x,) %}{% endfor %}{{ {}[ns.x] }}",
    "exception": NS
    + TIMES
    + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ raise_exception(ns.x) }}",
    "fromkeys": "{{ {}.fromkeys(range(99999), 1) }}",
    "fromkeys of dict": "{{ dict.fromkeys(range(99999), 1) }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "urlencode": "{{ 'a' | urlencode }}",
    "xmlattr": "{{ {'a': 'b'} | xmlattr }}",
    "forceescape": "{{ '<' | forceescape }}",
    "batch": "{{ [1] | batch(999999999, 0) | list }}",
    "cycler": "{{ cycler(1, 2).next() }}",
    "sort of a long text": "{{ ('ab' * 5000000) | sort | length }}",
    "time": "{{ strftime_now('%A' * 2000000) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "include": "{% include 'x' %}",
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute by filter": "{{ '' | attr('__class__') | upper }}",
    "division": "{{ 1 / 0 }}",
    "generation": "{% generation %}{{ 'a' * 99999999999 }}{% endgeneration %}",
    "loops": MANY * 3 + END * 3,
    "loops that swallow exceptions": MANY * 3 + "{{ '' if i is sequence }}" + END * 3,
    "macros that call themselves twice": "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}"
    "{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "lists in a loop": MANY + "{{ '' if range(99999) | list | sort(reverse=true) }}" + END,
    "slices in a loop": BIG + MANY + "{{ '' if x[::-1] }}" + END,
}


class Renderer:
    """Renders in a process of its own: code that holds the interpreter can only be killed."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection

    def __call__(self, source: str) -> tuple[str | tuple[str, str], float]:
        """Return what came out, and the seconds of computing that it took."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            self._pipe.recv()  # it has imported what it needs
        self._pipe.send(source)
        if not self._pipe.poll(60):
            self.close()
            pytest.fail("the template could not be interrupted")
        try:
            answer: tuple[str | tuple[str, str], float] = self._pipe.recv()
        except EOFError:
            self.close()
            pytest.fail("the template ended its process")
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection) -> None:
    templates.RENDER_SECONDS = 0.3
    pipe.send("ready")
    while True:
        source = pipe.recv()
        began = time.process_time()
        answer: str | tuple[str, str]
        try:
            answer = render(source)
        except Refused as refusal:
            answer = (refusal.code, str(refusal))
        except jinja2.TemplateError as error:
            answer = (type(error).__name__, str(error))
        pipe.send((answer, time.process_time() - began))


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_template_that_is_hostile_is_refused_at_once(source: str, renderer: Renderer) -> None:
    answer, seconds = renderer(source)
    assert seconds < SOON
    assert answer[0] == "INVALID_REQUEST", answer


def test_template_namespace_that_holds_itself_is_printed(renderer: Renderer) -> None:
    assert renderer("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}")[0] == "<Namespace>"
