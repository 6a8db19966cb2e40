"""Lets torch see cards that are not there: their tensors lie in RAM, and never meet by mistake.

Each storage is marked with its card. ``Tensor.device`` tells it, copies and factories with a device
set it, and an operation over tensors of several cards raises as it does on real ones. So all that
runs here is the product's own code and the libraries', with real numbers.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CPU = torch.device("cpu")
_aten = torch.ops.aten
#: Operations whose tensors may lie on several devices: copies, and one that looks at kinds only.
_ANYWHERE = (_aten.copy_, _aten._has_compatible_shallow_copy_type)
#: Operations of which a card takes indices that lie on the CPU.
_INDEXED = (_aten.index,)


class Cards:
    """Counts the bytes that simulated cards hold, and what is copied between devices."""

    def __init__(self) -> None:
        self.live: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()
        self.copies: Counter[tuple[torch.device, torch.device]] = Counter()

    def mark(self, tensor: Tensor, device: torch.device) -> None:
        """Say where a tensor's storage lies from now on."""
        storage: Any = tensor.untyped_storage()
        if not hasattr(storage, "place"):  # it lives as long as the memory itself
            storage.place = [_CPU]
            weakref.finalize(storage, self._leave, storage.place, storage.nbytes())
        self._leave(storage.place, storage.nbytes())
        storage.place[0] = device
        if device.type == "cuda":
            self.live[device.index] += storage.nbytes()
            self.peak[device.index] = max(self.peak[device.index], self.live[device.index])

    def _leave(self, place: list[torch.device], count: int) -> None:
        if place[0].type == "cuda":
            self.live[place[0].index] -= count


@contextmanager
def simulated_cards(monkeypatch: pytest.MonkeyPatch, count: int = 2) -> Iterator[Cards]:
    """Have torch tell of so many cards, and keep what is put there apart."""
    cards = Cards()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "simulated")
    monkeypatch.setattr(torch.cuda, "mem_get_info", _untold)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _card: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: _Queue())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", _Queue)
    monkeypatch.setattr(torch.cuda, "Event", _Queue)
    monkeypatch.setattr(Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: None)
    # What is simulated is seen by this thread; the library would load weights on others.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    with ExitStack() as modes:
        modes.enter_context(_Operations(cards))
        modes.enter_context(_Calls(cards))
        yield cards


class _Calls(TorchFunctionMode):
    """Answers calls that name a device, or ask for one."""

    def __init__(self, cards: Cards) -> None:
        super().__init__()
        self._cards = cards

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        given.pop("pin_memory", None)  # all memory is RAM
        if func is torch.device and len(args) == 1 and isinstance(args[0], int):
            return torch.device("cuda", args[0])
        if func == Tensor.device.__get__:
            own = func(*args)
            return own if own.type == "meta" else _mark_of(args[0])
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.cpu:
            return self._copied(args[0], _CPU)
        if func is Tensor.to:
            return self._to(*args, **given)
        device = _named(given.get("device"))
        if device is None:
            return func(*args, **given)
        made = func(*args, **{**given, "device": _CPU})
        self._cards.mark(made, device)
        return made

    def _to(self, tensor: Tensor, *args: Any, **given: Any) -> Tensor:
        device = _named(given.get("device"))
        rest: list[Any] = []
        for each in args:
            if isinstance(each, Tensor):
                device = _mark_of(each)
                rest += (_CPU, each.dtype)
            elif (found := _named(each)) is not None:
                device = found
                rest.append(_CPU)
            else:
                rest.append(each)
        if device is None:
            return tensor.to(*rest, **given)
        if "device" in given:
            given["device"] = _CPU
        return self._copied(tensor.to(*rest, **given), device)

    def _copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        source = _mark_of(tensor)
        if source == device:
            return tensor
        self._cards.copies[source, device] += 1
        there = tensor.detach().clone()
        self._cards.mark(there, device)
        return there


class _Operations(TorchDispatchMode):
    """Refuses operations over several devices, and says where results lie."""

    def __init__(self, cards: Cards) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._cards = cards

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        packet = func.overloadpacket
        tensors = [each for each in tree_leaves((args, given)) if isinstance(each, Tensor)]
        if packet in _ANYWHERE or any(each.is_meta for each in tensors):
            return func(*args, **given)
        devices = {_mark_of(each) for each in tensors if each.dim() or _is_on_card(each)}
        if packet in _INDEXED and len(devices) > 1:
            devices.discard(_CPU)
        if len(devices) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {devices} in {func}"
            )
        made = func(*args, **given)
        for device in devices - {_CPU}:
            for each in tree_leaves(made):
                if isinstance(each, Tensor) and not _is_on_card(each):
                    self._cards.mark(each, device)
        return made


class _Queue:
    """Is a stream, or an event of one, in which everything is done at once."""

    def __init__(self, _device: torch.device | None = None) -> None: ...

    def record(self, _stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, _stream: Any) -> None: ...

    def query(self) -> bool:
        return True


def _untold(_device: Any = None) -> tuple[int, int]:
    raise RuntimeError("this driver does not tell its memory")


def _mark_of(tensor: Tensor) -> torch.device:
    place: list[torch.device] = getattr(tensor.untyped_storage(), "place", [_CPU])
    return place[0]


def _is_on_card(tensor: Tensor) -> bool:
    return _mark_of(tensor).type == "cuda"


def _named(device: Any) -> torch.device | None:
    """Return the device that a call names, as tensors tell it; None for none, and for meta."""
    if isinstance(device, bool) or not isinstance(device, int | str | torch.device):
        return None
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type == "cuda":
        return torch.device("cuda", found.index or 0)
    return _CPU if found.type == "cpu" else None
