"""Keeps encoded prompts: people make many images of one prompt."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

_MAX_PROMPTS = 32
_PLAIN = (str, int, float, bool, type(None), torch.device, torch.dtype)


class PromptCache:
    """Keeps the latest results of a pipeline's ``encode_prompt``."""

    def __init__(self) -> None:
        self._results: OrderedDict[Any, Any] = OrderedDict()

    def attach(self, pipe: Any, loras: Any) -> None:
        """Let the pipeline of one call look here first; LoRAs change what encoders compute."""
        if hasattr(pipe, "encode_prompt"):
            pipe.encode_prompt = self._cached(pipe.encode_prompt, loras)

    def _cached(self, encode: Callable[..., Any], loras: Any) -> Callable[..., Any]:
        def cached_encode(*values: Any, **named: Any) -> Any:
            try:
                key = (_hashable(values), _hashable(sorted(named.items())), loras)
            except TypeError:
                return encode(*values, **named)
            if key not in self._results:
                self._results[key] = encode(*values, **named)
                if len(self._results) > _MAX_PROMPTS:
                    self._results.popitem(last=False)
            self._results.move_to_end(key)
            return _copied(self._results[key])

        return cached_encode

    def clear(self) -> None:
        self._results.clear()


def _hashable(value: Any) -> Any:
    """Return the value with tuples for lists. Raises TypeError for tensors and the like."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return tuple(_hashable(each) for each in value)
    raise TypeError(f"{type(value).__name__} cannot be a key")


def _copied(result: Any) -> Any:
    """Copy the lists of a result, which pipelines change; they do not change the tensors."""
    if isinstance(result, list | tuple):
        return type(result)(_copied(each) for each in result)
    return result
