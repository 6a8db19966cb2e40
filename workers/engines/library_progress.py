"""Counts the weights that transformers has put in their places, while it loads a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

_WEIGHTS = "Loading weights"  #: what the library calls its loop over them


@contextmanager
def placed_by_library(sizes: Mapping[str, int], placed: Callable[[int], None]) -> Iterator[None]:
    """Call ``placed`` with the bytes of each weight that the library has loaded.

    ``sizes``: bytes in the files by the weights' names; of a name that the library has changed, the
    mean of all is taken.
    """
    mean = sum(sizes.values()) // max(1, len(sizes))

    def counted(weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, weight in weights:
            yield name, weight
            placed(sizes.get(name, mean))

    def loop(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        known = options.get("desc") == _WEIGHTS and args
        return counted(args[0]) if known else bar(*args, **options)

    before = logging.set_tqdm_hook(loop)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
