"""Decides what a worker inherits of the operator's environment, and what is set for it. Pure."""

from collections.abc import Mapping

#: What a worker may inherit. Everything else stays behind: keys, tokens, the operator's secrets.
_INHERITED = {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
_INHERITED |= {"LD_PRELOAD", "GLIBC_TUNABLES"}  # how another allocator is brought in, or set
_INHERITED |= {"CC", "CXX", "XDG_CACHE_HOME"}  # what kernels are compiled by, and kept in
_INHERITED_PREFIXES = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "PYTHON",
    "OMP_",
    "GOMP_",
    "MKL_",
    "KMP_",
    "DNNL_",
    "ONEDNN_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "CUBLAS_",
    "CUDNN_",
    "NCCL_",
    "MALLOC_",
)
#: Words of a name whose value may be a secret, such as NVIDIA_API_KEY: it is never inherited.
_SECRET_WORDS = frozenset({"KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "CREDENTIALS"})
#: Names that operators set for the libraries of a worker, and that have no effect here.
_WELL_KNOWN_PREFIXES = (
    "ACCELERATE_",
    "DIFFUSERS_",
    "FLASH_ATTENTION_",
    "HF_HUB_",
    "HIP_",
    "HSA_",
    "LLAMA_",
    "NUMEXPR_",
    "OLLAMA_",
    "OPENBLAS_",
    "ROCR_",
    "SAFETENSORS_",
    "TOKENIZERS_",
    "TRANSFORMERS_",
    "VLLM_",
    "XFORMERS_",
)
#: Those that the gateway itself honours when it downloads.
_OF_THE_HUB = frozenset({"HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"})
#: Workers load from a local folder only; the libraries read most of these at import.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # NumPy's own threads: no code here multiplies matrices by it, and they begin at the import,
    # before a worker is confined.
    "OPENBLAS_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
#: The driver's library counts cards in this order; CUDA by itself takes the fastest first.
_CARD_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
#: Whether there is a card is asked of NVML. CUDA's own answer starts the driver, which reads
#: CUDA_VISIBLE_DEVICES there and then: a spare worker could not choose its card any more.
_CARD_CHECK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: Free memory of the allocator is joined, so that a larger request fits where smaller ones were.
_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
#: Arenas of glibc's heap: by default eight for each core, each of which keeps what its threads have
#: freed.
_ARENAS = {"MALLOC_ARENA_MAX": "2"}
#: Threads of OpenMP wait for each other after every operation. Unless told otherwise they turn in a
#: loop for milliseconds before they sleep: beside a busy process they burn the very core that the
#: missing one waits for, and each operation takes a time slice of the system. A bound of about 0.1
#: ms covers the gaps between a model's operations and costs no speed on a quiet machine.
_WAITING = {"GOMP_SPINCOUNT": "3000"}
_WAITING_NAMES = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
_ALLOCATOR_NAMES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}


def worker_environment(environ: Mapping[str, str], kernel: str) -> dict[str, str]:
    """Give the environment of a worker: what it needs to run, and nothing that is secret.

    ``kernel`` is the kernel's release: under WSL the driver has no expandable segments.
    """
    kept = {name: value for name, value in environ.items() if _is_inherited(name)}
    chosen = not _ALLOCATOR_NAMES.isdisjoint(kept) or "microsoft" in kernel.lower()
    allocator = {} if chosen else _ALLOCATOR
    arenas = {} if "glibc.malloc.arena_max" in kept.get("GLIBC_TUNABLES", "") else _ARENAS
    waiting = _WAITING if _WAITING_NAMES.isdisjoint(kept) else {}
    return _CARD_CHECK | allocator | arenas | waiting | kept | _OFFLINE | _CARD_ORDER


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """List the operator's variables, by name, that look as if they set workers up and do not.

    Values are not told. What a worker gets under the same value anyway is left out.
    """
    given = worker_environment(environ, "")
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith((*_WELL_KNOWN_PREFIXES, *_INHERITED_PREFIXES))
        and name not in _OF_THE_HUB
        and not _is_secret(name)
        and given.get(name) != value
    )


def _is_inherited(name: str) -> bool:
    known = name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    return known and not _is_secret(name)


def _is_secret(name: str) -> bool:
    return not _SECRET_WORDS.isdisjoint(name.upper().split("_"))
