"""Classifies faults: from an error's type, code or text to its class, and to what is blamed.

Workers classify what their libraries raise; the gateway reads from the class whether a death
counts against the request, the model or the device. Nothing here imports torch.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FaultName = Literal[
    "memory",
    "library memory",
    "library",
    "ram",
    "context lost",
    "memory fault",
    "card lost",
    "driver changed",
    "driver too old",
    "no code for the card",
    "unknown error",
    "display time-out",
    "card busy",
    "no compiler",
    "no numbers",
    "stuck",
    "node lost",
]

#: ``memory``: the model's footprint or the machine's RAM, never the request by itself. ``node``:
#: the machine of a cluster that it ran on, or the network to it.
Blame = Literal["request", "memory", "device", "setup", "node"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Describes a class of errors, and what follows from one."""

    name: FaultName
    blame: Blame
    cause: str  #: what its worker did, as in "The worker ..."
    sentence: str  #: for the operator: what is, and what to do
    ends: bool = True  #: the process must end: its CUDA context is not well any more
    certain: bool = False  #: one is enough to stop planning with the device
    codes: tuple[int, ...] = ()  #: of CUDA
    marks: tuple[str, ...] = ()  #: fragments of the text, in lower case


_FREE_THE_CARD = "Use a smaller batch, context or image, or a card with more memory."
_RESET = "Restart the machine or reset the card, and look at the kernel's log for Xid lines."

#: In the order in which they are looked for: what is certain comes first.
_TABLE = (
    Fault(
        "memory fault",
        "device",
        "met a memory fault of its card",
        f"The card reports memory that it could not correct (ECC). {_RESET}",
        certain=True,
        codes=(214,),
        marks=("uncorrectable ecc", "uncorrectable nvlink"),
    ),
    Fault(
        "card lost",
        "device",
        "lost its card",
        f"The card does not answer or is not there for new programs. {_RESET}",
        certain=True,
        codes=(100, 101),
        marks=(
            "gpu is lost",
            "fallen off the bus",
            "no cuda-capable device is detected",
            "no cuda gpus are available",
            "found no nvidia driver",
            "invalid device ordinal",
            "device has been lost",
        ),
    ),
    Fault(
        "driver changed",
        "device",
        "found a driver that does not fit its libraries",
        "The NVIDIA driver and its libraries are of different versions: the driver was updated "
        "while the machine ran, or a cuda-compat library is in the path. Restart the machine, or "
        "take the library out of LD_LIBRARY_PATH.",
        certain=True,
        codes=(803, 804),
        marks=(
            "unsupported display driver",
            "forward compatibility was attempted",
            "driver/library version mismatch",
        ),
    ),
    Fault(
        "driver too old",
        "device",
        "found a driver that is too old",
        "The NVIDIA driver is too old for this torch: install a newer driver.",
        certain=True,
        codes=(35,),
        marks=(
            "driver on your system is too old",
            "driver version is insufficient",
        ),
    ),
    Fault(
        "no code for the card",
        "device",
        "has no code for its card",
        "This torch has no code for the card's compute capability: use another card, or a torch "
        "that was built for this one.",
        certain=True,
        codes=(209,),
        marks=(
            "no kernel image is available",
            "not compatible with the current pytorch installation",
        ),
    ),
    Fault(
        "display time-out",
        "device",
        "was stopped by the display's watchdog",
        "A computation took longer than the driver allows on a card that drives a screen. Use "
        "another card for the models, or smaller batches and images.",
        codes=(702,),
        marks=("launch timed out",),
    ),
    Fault(
        "card busy",
        "device",
        "was refused by its card",
        "The card takes no further program: it is in an exclusive or prohibited compute mode, or "
        "another program holds it. Set the mode with 'nvidia-smi -c DEFAULT'.",
        codes=(46,),
        marks=("busy or unavailable",),
    ),
    Fault(
        "context lost",
        "request",
        "lost its CUDA context",
        "A computation on the card failed and has spoilt the process's CUDA context; a new "
        "process takes its place.",
        codes=(700, 710, 714, 715, 716, 717, 718, 719),
        marks=(
            "device-side assert",
            "illegal memory access",
            "misaligned address",
            "unspecified launch failure",
            "illegal instruction was encountered",
            "invalid program counter",
            "operation not supported on global/shared address space",
            "hardware stack error",
        ),
    ),
    Fault(
        "memory",
        "memory",
        "ran out of memory",
        f"The card's memory did not suffice. {_FREE_THE_CARD}",
        ends=False,
        codes=(2,),
        marks=(
            "cuda out of memory",
            "cuda error: out of memory",
            "[cuda]: out of memory",
            "cuda_error_out_of_memory",
            "cudaerrormemoryallocation",
            "can't allocate memory",
            "host_allocation_failed",
        ),
    ),
    Fault(
        "library memory",
        "memory",
        "ran out of memory",
        "A library of the driver found no room on the card beside torch's memory. "
        f"{_FREE_THE_CARD}",
        ends=False,
        marks=(
            "_status_alloc_failed",
            "_status_not_initialized",
            "unable to find an engine",
        ),
    ),
    Fault(
        "unknown error",
        "device",
        "met an unknown error of CUDA",
        "CUDA does not work any more, as after a suspend of the machine or a reload of its driver. "
        "Stop what uses the card and reload the module nvidia_uvm, or restart the machine.",
        codes=(999,),
        marks=(
            "cuda error: unknown error",
            "cuda unknown error",
            "cuda driver initialization failed",
            "cuda_error_unknown",
        ),
    ),
    Fault(
        "no compiler",
        "setup",
        "found no compiler",
        "Compiling needs a C compiler, Python's headers and a folder that can be written to: "
        "install gcc and the headers, or set image.compile to false and text.attention to sdpa. "
        "On a card weights of 8 and 4 bits need them, too.",
        ends=False,
        marks=("failed to find c compiler", "python.h: no such file"),
    ),
)

#: No error has these classes: they are found out otherwise.
LIBRARY = Fault(
    "library",
    "request",
    "met an error of a CUDA library",
    "A library of CUDA failed although the card has memory left.",
)
RAM = Fault(
    "ram",
    "memory",
    "was ended by the kernel: the machine's RAM ran out",
    "It is RAM that is short, not a card's memory: use a smaller model, stop other programs, or "
    "add RAM or swap.",
)
NO_NUMBERS = Fault(
    "no numbers",
    "setup",
    "computed what is no number",
    "float16 overflows in this model or computes NaN on this card: set models.<name>.dtype to "
    "float32, or to bfloat16 on cards that have it.",
    ends=False,
)
STUCK = Fault(
    "stuck",
    "device",
    "was killed and does not end",
    "A process on it was killed and does not end, as when the driver hangs; its memory stays "
    "reserved until it is gone. If that lasts, restart the machine.",
)
NODE_LOST = Fault(
    "node lost",
    "node",
    "lost its node",
    "The machine that it ran on, the agent there or the network to it has failed; what it did runs "
    "again on other nodes, and the node is used again once its agent answers.",
)

FAULTS: dict[FaultName, Fault] = {
    fault.name: fault for fault in (*_TABLE, LIBRARY, RAM, NO_NUMBERS, STUCK, NODE_LOST)
}

_MEMORY, _LIBRARY_MEMORY = FAULTS["memory"], FAULTS["library memory"]
_CODES = {code: fault for fault in _TABLE for code in fault.codes}
_NCCL_MEMORY = re.compile(r"cuda failure (\d+ )?'out of memory'")
_FOUND_VERSION = re.compile(r"found version (\d+)", re.IGNORECASE)
_MOST_CAUSES = 8


def classify(error: BaseException, *, room: bool = False) -> Fault | None:
    """Return the class of an error, or of what it was raised from; None for an ordinary one.

    With ``room`` the card has much memory left, so that a library's failure to get some is
    something else.
    """
    for each in _chain(error):
        if (fault := _class_of(each)) is not None:
            return LIBRARY if room and fault is _LIBRARY_MEMORY else fault
    return None


def sentence(error: BaseException, fault: Fault) -> str:
    """Tell the operator what an error means and what to do, with the figures that it holds."""
    found = _FOUND_VERSION.search(str(error))
    if fault.name == "driver too old" and found:
        # CUDA's own counting, in which 12080 is 12.8; readers take it for the driver's version.
        major, minor = divmod(int(found[1]) // 10, 100)
        return f"{fault.sentence} This one runs CUDA {major}.{minor} at most."
    return fault.sentence


def _class_of(error: BaseException) -> Fault | None:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _MEMORY
    if isinstance(error, OSError):
        return _MEMORY if error.errno == errno.ENOMEM else None
    if not isinstance(error, RuntimeError):
        return None
    code = getattr(error, "error_code", None)
    if isinstance(code, int) and code in _CODES:
        return _CODES[code]
    text = str(error).lower()
    if _NCCL_MEMORY.search(text):
        return _MEMORY
    return next((each for each in _TABLE if any(mark in text for mark in each.marks)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or while handling."""
    each: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
