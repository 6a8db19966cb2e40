"""Bounds the values of a chat template, and what one rendering may make in all.

A time limit cannot interrupt C code, so C code must never get a large task. Every container that a
template builds is measured as a tree: a list that holds another one twice counts it twice, as
printing, comparing and hashing do. Then whatever walks a value once ends soon.
"""

import itertools
import sys
import threading
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from typing import Any, TypeVar

import jinja2

LONGEST = 16_000_000  #: characters of one value, where each item of a container counts as ``ITEM``
ITEM = 64
DEEPEST = 100  #: containers within containers
MOST_BITS = 4096  #: of a number: arithmetic and printing are quadratic
MOST_BYTES = 2**29  #: that the values of one rendering take together, those dropped included
MOST_STEPS = 2 * 10**8  #: of a search that may compare each character with each
_VIEWS = (KeysView, ValuesView, ItemsView)

T = TypeVar("T")


class TemplateTooExpensive(jinja2.TemplateError):
    """The template asked for more time or memory than a prompt can need."""


class TemplateTooSlow(TemplateTooExpensive):
    """The template ran longer than it may."""

    def __init__(self) -> None:
        super().__init__("it takes too long")


class Meter:
    """Measures the values of one rendering."""

    def __init__(self) -> None:
        self._made = 0
        # Holds the values too: an id is that of a value for as long as the value lives.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def check(self, value: T) -> T:
        """Return a value that the template has made. Raises TemplateTooExpensive."""
        if isinstance(value, str):
            check_size(len(value))
            self.count(sys.getsizeof(value))
        elif isinstance(value, int):
            check_number(value)
        else:
            self.count(self.weight(value))
        return value

    def weight(self, value: Any) -> int:
        """Return the size of a value as a tree. Raises TemplateTooExpensive above the bounds."""
        return self.measure(value)[0]

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """Return a list of what any iterable gives. Raises TemplateTooExpensive."""
        most = LONGEST // ITEM
        items = list(itertools.islice(values, most + 1))
        check_size(len(items) * ITEM)
        return self.check(items)

    def count(self, size: int) -> None:
        """Add bytes to what the rendering has made. Raises TemplateTooExpensive."""
        self._made += size
        if self._made > MOST_BYTES:
            raise TemplateTooExpensive("the chat template makes too much text")

    def measure(self, value: Any) -> tuple[int, int]:
        """Return a value's weight, and how deep containers nest in it."""
        if isinstance(value, str):
            return ITEM + len(value), 0
        if isinstance(value, int):
            return ITEM + value.bit_length() // 3, 0
        items = _items(value)
        if items is None:
            return ITEM, 0
        known = self._known.get(id(value))
        if known is None:
            known = value, *self._measure_items(items)
            self._known[id(value)] = known
        return known[1], known[2]

    def _measure_items(self, items: Iterable[Any]) -> tuple[int, int]:
        weight, depth = ITEM, 0
        for item in items:
            one, below = (ITEM + len(item), 0) if type(item) is str else self.measure(item)
            weight += one
            if below > depth:
                depth = below
            if weight > LONGEST:
                check_size(weight)
        if depth >= DEEPEST:
            raise TemplateTooExpensive("a value in the chat template nests too deep")
        return weight, depth + 1


class Meters(threading.local):
    """Holds the meter of the rendering that runs in a thread."""

    def __init__(self) -> None:
        self.meter = Meter()


def check_size(size: int) -> None:
    """Raise TemplateTooExpensive for a value of more characters than may be."""
    if size > LONGEST:
        raise TemplateTooExpensive("a value in the chat template grows too long")


def check_number(value: int) -> None:
    """Raise TemplateTooExpensive for a number that arithmetic would take long over."""
    if value.bit_length() > MOST_BITS:
        raise TemplateTooExpensive("a number in the chat template grows too long")


def check_steps(text: str, sought: Any) -> None:
    """Raise TemplateTooExpensive for a search that is too slow in the worst case."""
    if isinstance(sought, str) and len(text) * len(sought) > MOST_STEPS:
        raise TemplateTooExpensive("a search in the chat template takes too long")


def _items(value: Any) -> Iterable[Any] | None:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return itertools.chain(value.keys(), value.values())
    return value if isinstance(value, _VIEWS) else None
