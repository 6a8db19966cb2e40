"""Encoded prompts, kept for the next image: people draw one prompt many times."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

_MOST = 32
_PLAIN = (str, int, float, bool, type(None), torch.device, torch.dtype)


class PromptCache:
    """Results of a pipeline's ``encode_prompt``, the latest few. They are equal bit for bit."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def attach(self, pipe: Any, adapters: Any) -> None:
        """Let one run's pipeline ask here first; adapters change what encoders say."""
        if hasattr(pipe, "encode_prompt"):
            pipe.encode_prompt = self._cached(pipe.encode_prompt, adapters)

    def _cached(self, encode: Callable[..., Any], adapters: Any) -> Callable[..., Any]:
        def ask(*values: Any, **named: Any) -> Any:
            try:
                key = (_frozen(values), _frozen(sorted(named.items())), adapters)
            except TypeError:
                return encode(*values, **named)
            if key not in self._known:
                self._known[key] = encode(*values, **named)
                if len(self._known) > _MOST:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return _own(self._known[key])

        return ask

    def clear(self) -> None:
        self._known.clear()


def _frozen(value: Any) -> Any:
    """The same as something that can be a key. Raises TypeError for tensors and the like."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(each) for each in value)
    raise TypeError(f"{type(value).__name__} cannot be a key")


def _own(result: Any) -> Any:
    """Lists of one's own, which pipelines may change; they do not change the tensors."""
    if isinstance(result, list | tuple):
        return type(result)(_own(each) for each in result)
    return result
