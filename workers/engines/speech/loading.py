"""From a folder to a Bark with its tokenizer and voices: nothing is fetched or unpickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from workers.engines.base import Refused, reason
from workers.engines.speech.voices import Voices
from workers.protocol import Load

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: What the libraries raise for files that do not fit.
_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(slots=True, frozen=True)
class LoadedBark:
    model: Any
    tokenizer: Any
    voices: Voices
    dtype: torch.dtype
    device: torch.device


def load(spec: Load) -> LoadedBark:
    """Raises Refused with MODEL_LOAD_FAILED for whatever is wrong with the files."""
    folder = Path(spec.path)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise _failed("The model is to run on CUDA, but this process sees no CUDA device.")
    device = torch.device(spec.device)
    # Half precision where a device is fast at it; a CPU is not.
    dtype = _DTYPES[spec.dtype] if spec.dtype else torch.float32
    if spec.dtype is None and device.type == "cuda":
        dtype = torch.bfloat16
    try:
        model, info = transformers.BarkModel.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        voices = Voices(folder)
    except _ERRORS as error:
        raise _failed(f"The model does not load: {reason(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise _failed(f"{len(missing)} tensors are missing from the weights, {missing[0]} first.")
    model = model.eval().requires_grad_(False).to(device)
    return LoadedBark(model, tokenizer, voices, dtype, device)


def _failed(message: str) -> Refused:
    return Refused("MODEL_LOAD_FAILED", message)
