"""The table of faults: from the text of an error to its class, and to what is blamed."""

import errno

import pytest
import torch

from tests.support.cuda_errors import OUT_OF_MEMORY_ERRORS, STICKY_ERRORS
from workers.engines import torch_env
from workers.faults import FAULTS, Fault, classify, sentence


def fault_of(text: str) -> Fault:
    fault = classify(RuntimeError(text))
    assert fault is not None, text
    return fault


@pytest.mark.parametrize("error", OUT_OF_MEMORY_ERRORS.values(), ids=list(OUT_OF_MEMORY_ERRORS))
def test_fault_of_memory_is_told_in_every_disguise(error: Exception) -> None:
    fault = classify(error)
    assert fault is not None
    assert (fault.blame, fault.ends) == ("memory", False)


@pytest.mark.parametrize("error", STICKY_ERRORS.values(), ids=list(STICKY_ERRORS))
def test_fault_that_spoils_the_context_ends_the_process(error: Exception) -> None:
    fault = classify(error)
    assert fault is not None
    assert fault.ends
    assert fault.blame in ("request", "device")


@pytest.mark.parametrize(
    ("text", "name", "blame"),
    [
        ("CUDA error: device-side assert triggered", "context lost", "request"),
        ("CUDA error: an illegal memory access was encountered", "context lost", "request"),
        ("CUDA error: misaligned address", "context lost", "request"),
        ("CUDA error: unspecified launch failure", "context lost", "request"),
        ("Triton Error [CUDA]: an illegal memory access", "context lost", "request"),
        ("CUDA error: unknown error", "unknown error", "device"),
        (
            "CUDA unknown error - this may be due to an incorrectly set up",
            "unknown error",
            "device",
        ),
        (
            "CUDA error: no kernel image is available for execution",
            "no code for the card",
            "device",
        ),
        (
            "is not compatible with the current PyTorch installation.",
            "no code for the card",
            "device",
        ),
        ("Error 803: system has unsupported display driver / cuda", "driver changed", "device"),
        ("Error 804: forward compatibility was attempted on non", "driver changed", "device"),
        ("The NVIDIA driver on your system is too old", "driver too old", "device"),
        ("CUDA error: no CUDA-capable device is detected", "card lost", "device"),
        ("No CUDA GPUs are available", "card lost", "device"),
        ("CUDA error: the launch timed out and was terminated", "display time-out", "device"),
        ("CUDA-capable device(s) is/are busy or unavailable", "card busy", "device"),
        ("CUDA error: uncorrectable ECC error encountered", "memory fault", "device"),
        ("Failed to find C compiler. Please specify via CC", "no compiler", "setup"),
    ],
)
def test_fault_has_a_class_by_its_text_and_the_class_a_blame(
    text: str, name: str, blame: str
) -> None:
    fault = fault_of(text)
    assert (fault.name, fault.blame) == (name, blame)
    assert FAULTS[fault.name] is fault
    assert fault.sentence.endswith(".")


@pytest.mark.parametrize(
    ("code", "name"),
    [(2, "memory"), (719, "context lost"), (999, "unknown error"), (100, "card lost")],
)
def test_fault_has_a_class_by_the_code_of_its_error_alone(code: int, name: str) -> None:
    error = torch.AcceleratorError("in some other language")
    vars(error)["error_code"] = code
    fault = classify(error)
    assert fault is not None
    assert fault.name == name


def test_fault_of_memory_may_be_of_the_machine_s() -> None:
    assert classify(MemoryError()) is FAULTS["memory"]
    assert classify(OSError(errno.ENOMEM, "Cannot allocate memory")) is FAULTS["memory"]


def test_fault_is_found_below_the_error_that_a_library_makes_of_it() -> None:
    outer = ValueError("the call failed")
    outer.__cause__ = RuntimeError("CUDA error: unknown error")
    assert classify(outer) is FAULTS["unknown error"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error: out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        IndexError("out of range"),
    ],
)
def test_fault_is_no_ordinary_error(error: Exception) -> None:
    assert classify(error) is None


@pytest.mark.parametrize("name", ["cublas handle", "cudnn"])
def test_fault_of_a_library_is_no_lack_of_memory_on_a_card_with_room(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = [20 << 30, 1 << 30]  # of a split model's cards
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], 24 << 30))
    error = OUT_OF_MEMORY_ERRORS[name]
    assert torch_env.is_out_of_memory(error)
    free[1] = 20 << 30
    assert not torch_env.is_out_of_memory(error)
    assert torch_env.must_end(error, "cuda")


def test_driver_that_is_too_old_is_told_in_cuda_s_version_and_not_in_its_count() -> None:
    error = RuntimeError("The NVIDIA driver on your system is too old (found version 12080).")
    assert sentence(error, fault_of(str(error))).endswith("This one runs CUDA 12.8 at most.")
