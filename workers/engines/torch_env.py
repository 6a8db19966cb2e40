"""Sets torch up as all engines use it: devices, memory, number formats, attention, refusals.

Only engines import this module; the gateway never imports torch.
"""

import gc
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from workers.engines import dtypes
from workers.engines.base import Refused, reason
from workers.engines.cpu_threads import threads_for
from workers.engines.defaults import CONTEXT_BYTES
from workers.faults import Fault, classify, sentence
from workers.protocol import Load

log = logging.getLogger(__name__)

#: The number formats that a setting can name.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in dtypes.DTYPE_BYTES}

_context_bytes = CONTEXT_BYTES  #: as the gateway has measured it, if it has

_MOST_UNUSED = 1 << 30  #: bytes of a card that the allocator may cache without need

#: With more than this part of a card free, a library that gets no memory has another trouble.
_ROOM = 0.25

#: What the libraries and safetensors raise for files that do not fit together.
_LIBRARY_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    SafetensorError,
)


@contextmanager
def loading(
    spec: Load, what: str = "this model", *, cudnn_attention: bool = False
) -> Iterator[None]:
    """Set torch up for an engine's load, and free what only the load needed.

    Raises Refused with OUT_OF_MEMORY if memory runs out; the message names ``what`` did not fit.
    ``cudnn_attention`` leaves cuDNN's attention on, for models whose lengths seldom change.
    """
    global _context_bytes  # noqa: PLW0603  the process has one engine
    _context_bytes = spec.context_bytes or CONTEXT_BYTES
    if (threads := threads_for(spec, os.environ)) is not None:
        torch.set_num_threads(threads)
    # For good, and not around each call: calls of several jobs take turns on one thread.
    torch.set_grad_enabled(False)
    if not cudnn_attention:
        _avoid_cudnn_attention()
    if spec.device == "cuda":
        _stay_on_the_cards()
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(what) from error
    _finish_load(spec.device)


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Raise Refused with a message and the library's reason if a library cannot read the files.

    Errors of a class of faults pass through, since the files have no part in them.
    """
    try:
        yield
    except _LIBRARY_ERRORS as error:
        if fault_of(error) is not None:
            raise
        raise load_failed(f"{message}: {reason(error)}") from error


def load_failed(message: str) -> Refused:
    """Return the refusal of a load whose files or settings are at fault."""
    return Refused("MODEL_LOAD_FAILED", message)


def device(spec: Load) -> torch.device:
    """Return the device that a load names.

    Raises Refused for CUDA where there is no card, or the cards are not those that were chosen.
    """
    if spec.device == "cuda":
        if not torch.cuda.is_available():
            raise _without_card(
                "The model is to run on CUDA, but this process sees no CUDA device."
            )
        _check_cards(spec.visible_devices.split(","))
    return torch.device(spec.device)


def straight_to(device: torch.device) -> dict[str, torch.device] | None:
    """Return the libraries' device map by which each weight goes to the card as it is read.

    Otherwise all of them are gathered in RAM first, which may be smaller than the card. None on a
    CPU, where weights stay mapped from their files until they are packed.
    """
    return None if device.type == "cpu" else {"": device}


def _check_cards(chosen: Sequence[str]) -> None:
    """Raise Refused if this process sees other cards than CUDA_VISIBLE_DEVICES names by UUID.

    Libraries count cards when they are imported, and an index may mean another card by then.
    """
    if not all(entry.startswith("GPU-") for entry in chosen):
        return  # of an instance (MIG) the library tells its card's UUID
    count = torch.cuda.device_count()
    seen = [
        f"GPU-{uuid}"
        for uuid in (
            getattr(torch.cuda.get_device_properties(card), "uuid", None) for card in range(count)
        )
        if uuid is not None
    ]
    if count != len(chosen) or (seen and seen != list(chosen)):
        raise load_failed(
            f"The worker was given the cards {', '.join(chosen)} and sees {count}: "
            f"{', '.join(seen) or 'of unknown UUID'}. Its model was not loaded."
        )


def _without_card(text: str) -> Refused:
    """Return the refusal of a load without a card, with the reason that the driver gives."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
        if (fault := classify(error)) is not None:
            text = f"{text} {sentence(error, fault)}"
            return Refused("MODEL_LOAD_FAILED", text, fault=fault.name)
    return Refused("MODEL_LOAD_FAILED", text, fault="card lost")


def check_missing(keys: Iterable[str], where: str = "the weights") -> None:
    """Raise Refused if a library found no weights for some tensors: it made random ones."""
    if missing := sorted(keys):
        raise load_failed(f"{len(missing)} tensors are missing from {where}, {missing[0]} first.")


def fault_of(error: BaseException) -> Fault | None:
    """Return the class of an error by the table of faults; None for an ordinary one."""
    fault = classify(error)
    if fault is not None and fault.name == "library memory":
        return classify(error, room=_has_room())
    return fault


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory ran out, on a card or in RAM: the process may go on."""
    fault = fault_of(error)
    return fault is not None and fault.blame == "memory"


def must_end(error: BaseException, device: torch.device | str) -> bool:
    """True if the process must end: an error may have spoilt its CUDA context, and going on would
    give garbage. On a card that holds for each error of torch that has no class."""
    fault = fault_of(error)
    if fault is not None:
        return fault.ends
    return torch.device(device).type == "cuda" and isinstance(error, RuntimeError)


def _has_room() -> bool:
    """True if all cards of this process have much memory left: which of them lacks it, an error
    does not tell. Raises RuntimeError if one is lost."""
    if not torch.cuda.is_initialized():
        return False
    cards = (torch.cuda.mem_get_info(card) for card in range(torch.cuda.device_count()))
    return all(free > _ROOM * total for free, total in cards)


def out_of_memory(what: str = "this model") -> Refused:
    """Return the refusal of a load for which the device's memory does not suffice."""
    return Refused("OUT_OF_MEMORY", f"The device has not enough memory for {what}.")


def release_cached(device: torch.device | str) -> None:
    """Return memory that the allocator caches to the device; does nothing on a CPU.

    Drop the traceback of a failed step first: it holds on to the step's tensors.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def release_unused(device: torch.device | str) -> None:
    """Return cached memory to a card if much of it lies unused, in pieces of sizes that may not
    come again."""
    if torch.device(device).type != "cuda":
        return
    if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > _MOST_UNUSED:
        torch.cuda.empty_cache()


def _stay_on_the_cards(kernel: str = platform.release()) -> None:
    """Let memory run out where a card is full, under WSL too.

    The driver of Windows gives system memory then, in silence, and a step takes minutes. So the
    allocator takes no more than what is free when the load begins.
    """
    if "microsoft" not in kernel.lower() or not torch.cuda.is_available():
        return
    for card in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(card)
        torch.cuda.set_per_process_memory_fraction(free / total, card)


def _finish_load(device: torch.device | str) -> None:
    """Release what a load needed for a moment, and begin to measure from here."""
    release_cached(device)
    if torch.device(device).type == "cuda":
        # The pinned buffers through which weights came: torch keeps them. Older builds cannot.
        if (empty := getattr(torch.accelerator, "empty_host_cache", None)) is not None:
            empty()
        for card in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(card)


def held_bytes(device: torch.device | str) -> int | None:
    """Return the bytes that this process holds on its cards, the highest since the last call.

    None on a CPU, where an engine holds the process's own memory.
    """
    if torch.device(device).type != "cuda":
        return None
    total = 0
    for card in range(torch.cuda.device_count()):
        total += torch.cuda.max_memory_reserved(card) + _context_bytes
        torch.cuda.reset_peak_memory_stats(card)
    return total


def choose_dtype(
    kind: str,
    spec: Load,
    device: torch.device,
    stored: torch.dtype | None = None,
    *,
    model_type: str = "",
) -> torch.dtype:
    """Return the number format to compute in: the setting's, else the choice of ``dtypes``.

    Raises Refused for a setting that names none. What is doubtful or not in the files' own format
    goes to the log.
    """
    capability, name = None, ""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    if spec.dtype is not None:
        if spec.dtype not in DTYPES:
            raise load_failed(f"The dtype {spec.dtype} is none of {', '.join(DTYPES)}.")
        if warning := dtypes.doubt(kind, spec.dtype, capability, name):
            log.warning("%s: %s", spec.model, warning)
        return DTYPES[spec.dtype]
    own = dtype_name(stored) if stored is not None else None
    chosen = dtypes.dtype_for(kind, own, capability, name, model_type=model_type)
    if own is not None and own != chosen:
        log.info("%s: its files are in %s; it computes in %s", spec.model, own, chosen)
    return DTYPES[chosen]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name by which settings and answers call a number format."""
    return str(dtype).removeprefix("torch.")


def _avoid_cudnn_attention() -> None:
    """Take cuDNN out of the backends of scaled_dot_product_attention in this process.

    cuDNN builds a plan for every new combination of batch and lengths, which takes the host 25 ms
    and more, and keeps all of them; where lengths grow with each token it never stops building.
    Hopper and Blackwell cards prefer it to the other backends.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
