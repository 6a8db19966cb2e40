"""Lists the filters and methods of chat templates, each with a bound on what it makes.

The lists hold what published templates use. What can multiply a value is checked before the work;
the rest makes at most a few times what it was given, so its result is checked afterwards.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from string import Formatter
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.filters import make_attrgetter

from workers.engines.text.template_bounds import (
    ITEM,
    MOST_BITS,
    Meter,
    Meters,
    TemplateTooExpensive,
    check_size,
    check_steps,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words(
    "abs capitalize center count d default dictsort e escape first float format indent int items "
    "join last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string sum title tojson trim unique upper"
)
TESTS = _words(
    "!= < <= == > >= boolean callable defined divisibleby eq equalto escaped even false filter "
    "float ge greaterthan gt in integer iterable le lessthan lower lt mapping ne none number odd "
    "sameas sequence string test true undefined upper"
)
_STR = _words(
    "capitalize casefold center count endswith expandtabs find format format_map index isalnum "
    "isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
    "isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
    "zfill"
)
#: Methods by type; a template's own values are of these types.
METHODS: dict[type, frozenset[str]] = {
    str: _STR,
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index"}),
    float: frozenset({"is_integer"}),
}
#: These compare each character with each in the worst case; the other searches are linear.
_SLOW_SEARCHES = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
_MOST_DIGITS = 3  #: of a width or a precision
_NUMBER = MOST_BITS // 3 + 2 * 10**_MOST_DIGITS  #: characters that a formatted number may have
_QUOTED = 12  #: a character becomes at most so many when it is quoted
_MOST_PRECISION = 20
_WIDEST_JSON_PART = 16
_PERCENT = re.compile(r"[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)", re.DOTALL)
_LONG_NUMBER = re.compile(r"\d" * (_MOST_DIGITS + 1))

#: These read all of what they are given before they give anything.
_OF_LISTS = frozenset({"join", "max", "min", "sort", "unique"})

Filter = Callable[..., Any]


def bounded_filters(library: Mapping[str, Filter], meters: Meters) -> dict[str, Filter]:
    """Return the library's filters by name: those of the list bounded, the others refuse use."""

    def listed(values: Iterable[Any]) -> list[Any]:
        return meters.meter.listed(values)

    ours: dict[str, Filter] = {"list": listed, "sum": _sum}
    return {
        name: ours.get(name) or _bounded(name, function, meters)
        if name in _FILTERS
        else _refused(name)
        for name, function in library.items()
    }


def _refused(name: str) -> Filter:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise TemplateTooExpensive(f"the filter '{name}' is not allowed in a chat template")

    return refuse


def _bounded(name: str, function: Filter, meters: Meters) -> Filter:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    check = _CHECKS.get(name)

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        meter = meters.meter
        if name in _OF_LISTS and len(args) > first:
            args = (*args[:first], meter.listed(args[first]), *args[first + 1 :])
        if check is not None:
            check(meter, args[first:], kwargs)
        return meter.check(function(*args, **kwargs))

    return bounded


@pass_environment
def _sum(
    environment: Environment, values: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    """Add up by the environment's own bounded operator."""
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings [use ''.join(seq) instead]")
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    for value in values:
        start = environment.call_binop(None, "+", start, value)  # type: ignore[attr-defined]  # of sandboxes
    return start


# ---- what is checked before the work ----------------------------------------------------------


Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


def _argument(args: Arguments, kwargs: Keywords, place: int, name: str, default: Any) -> Any:
    """Return what a filter was given in this place or under this name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def _check_center(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    check_size(_argument(args, kwargs, 1, "width", 80))


def _check_format(meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    check_percent(meter, str(args[0]), kwargs or args[1:])


def _check_indent(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    width = _argument(args, kwargs, 1, "width", 4)
    size = len(width) if isinstance(width, str) else width
    check_size(size)
    check_size(len(args[0]) + size * (1 + len(args[0].splitlines())))


def _check_join(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    check_size(len(args[0]) * len(str(_argument(args, kwargs, 1, "d", ""))))


def _check_replace(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    old, new = (_argument(args, kwargs, 1, "old", ""), _argument(args, kwargs, 2, "new", ""))
    most = _argument(args, kwargs, 3, "count", None)
    _check_replacement(str(args[0]), str(old), str(new), -1 if most is None else most)


def _check_round(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    if abs(_argument(args, kwargs, 1, "precision", 0)) > _MOST_PRECISION:
        raise TemplateTooExpensive("a number in the chat template has too many digits")


def _check_json(meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    weight, depth = meter.measure(args[0])
    for part in _argument(args, kwargs, 3, "separators", None) or ():
        _check_json_part(len(part))
    indent = _argument(args, kwargs, 2, "indent", None)
    if indent is not None:
        size = len(indent) if isinstance(indent, str) else indent
        _check_json_part(size)
        check_size(weight // ITEM * depth * size)


def _check_json_part(size: int) -> None:
    if size > _WIDEST_JSON_PART:
        raise TemplateTooExpensive("the chat template's JSON is too wide")


def _check_trim(_meter: Meter, args: Arguments, kwargs: Keywords) -> None:
    check_steps(str(args[0]), _argument(args, kwargs, 1, "chars", None))


_CHECKS: dict[str, Callable[[Meter, Arguments, Keywords], None]] = {
    "center": _check_center,
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "tojson": _check_json,
    "trim": _check_trim,
}


def bounded_arguments(
    meter: Meter, name: str, text: str, args: Arguments, kwargs: Keywords
) -> Arguments:
    """Return the arguments for a method of a string, checked. Raises TemplateTooExpensive."""
    match name, args:
        case (("center" | "ljust" | "rjust" | "zfill"), (int(width), *_)):
            check_size(width)
        case "expandtabs", _:
            width = args[0] if args else kwargs.get("tabsize", 8)
            check_size(len(text) + text.count("\t") * width)
        case "replace", (str(old), str(new), *rest):
            _check_replacement(text, old, new, rest[0] if rest else -1)
        case "join", (items,):
            items = meter.listed(items)
            check_size(len(items) * len(text))
            return (items,)
        case "format", _:
            check_braces(meter, text, (*args, *kwargs.values()))
        case "format_map", _:
            check_braces(meter, text, args)
        case _ if name in _SLOW_SEARCHES:
            for sought in (*args, *kwargs.values()):
                check_steps(text, sought)
    return args


def _check_replacement(text: str, old: str, new: str, most: int) -> None:
    times = text.count(old)
    check_size(len(text) + len(new) * (min(times, most) if most >= 0 else times))


def check_percent(meter: Meter, text: str, values: Any) -> None:
    """Check the operator %: how wide its fields are, and how long what they hold."""
    fields, quoted = 0, False
    at = text.find("%")
    while at >= 0:
        found = _PERCENT.match(text, _after_key(text, at + 1))
        assert found  # every part of it is optional
        for width in (found[1], found[2] or ""):
            _check_width(width)
        fields += found[3] != "%"
        quoted |= found[3] in "ra"
        at = text.find("%", found.end())
    each = tuple(values.values()) if isinstance(values, Mapping) else values
    each = each if isinstance(each, tuple) else (each,)
    _check_fields(meter, text, fields, each, quoted=quoted)


def _after_key(text: str, at: int) -> int:
    """Return where a field goes on after its key in brackets, which may hold brackets itself."""
    if not text.startswith("(", at):
        return at
    depth = 0
    for position in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position + 1
    return len(text)


def check_braces(meter: Meter, text: str, values: tuple[Any, ...]) -> None:
    """Check str.format: how wide its fields are, and how long what they hold."""
    fields, quoted = 0, False
    for _, name, spec, conversion in Formatter().parse(text):
        if name is not None:
            fields += 1
            quoted |= conversion is not None
            if spec and ("{" in spec or _LONG_NUMBER.search(spec)):
                _check_width("*")
    _check_fields(meter, text, fields, values, quoted=quoted)


def _check_width(width: str) -> None:
    if width == "*" or len(width) > _MOST_DIGITS:
        raise TemplateTooExpensive("such wide fields are not allowed in a chat template")


def _check_fields(
    meter: Meter, text: str, fields: int, values: tuple[Any, ...], *, quoted: bool
) -> None:
    longest = max((_printed_size(meter, value, quoted) for value in values), default=0)
    check_size(len(text) + fields * longest)


def _printed_size(meter: Meter, value: Any, quoted: bool) -> int:
    size: int = _NUMBER
    if isinstance(value, str) and not quoted:
        size += len(value)
    elif not isinstance(value, int | float):
        size += meter.weight(value) * _QUOTED
    return size
