"""Exceptions of torch and the libraries below it: memory that ran out, contexts that are spoilt."""

import torch

OUT_OF_MEMORY_ERRORS = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": torch.AcceleratorError("CUDA error: out of memory"),
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cublas handle": RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "cudnn": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cudnn host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "nccl": RuntimeError(
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error. Last error: Cuda failure 2 'out of "
        "memory'"
    ),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
}

#: Two of them, for tests of what follows; the contract of engines has all of them.
TWO_OUT_OF_MEMORY_ERRORS = {name: OUT_OF_MEMORY_ERRORS[name] for name in ("allocator", "cpu")}

#: After any of these a process is of no use any more.
STICKY_ERRORS = {
    "assert": torch.AcceleratorError("CUDA error: device-side assert triggered"),
    "illegal access": torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered"
    ),
    "launch failure": RuntimeError("CUDA error: unspecified launch failure"),
    "ecc": torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    "unknown": RuntimeError("CUDA error: unknown error"),
}
