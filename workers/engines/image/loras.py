"""Loads LoRAs with the model, and switches them on for the calls that ask for them.

Which are on is state of the weights that all calls share, so it is set before each step of a call
that wants others than the step before it.
"""

import warnings
from pathlib import Path
from typing import Any

from workers.engines.base import Refused
from workers.engines.torch_env import fault_of, load_failed
from workers.protocol import ImageJob, Lora


class Loras:
    """Owns which LoRAs of a pipeline are on."""

    def __init__(self, pipe: Any, files: dict[str, str]) -> None:
        """Load all of ``files``, by name. Raises Refused for one that does not fit the model."""
        self._pipe = pipe
        self._names = sorted(files)
        self._active: tuple[Lora, ...] = ()
        for name, path in files.items():
            _load(pipe, name, Path(path))
        if files:
            pipe.disable_lora()

    def check(self, job: ImageJob) -> None:
        """Raise Refused if a job names a LoRA that there is not, or names one of them twice."""
        wanted = [lora.name for lora in job.adapters]
        if len(set(wanted)) < len(wanted):
            raise Refused("INVALID_REQUEST", "'loras' names one of them twice.", param="loras")
        for name in wanted:
            if name not in self._names:
                there = ", ".join(self._names) or "none"
                raise Refused(
                    "INVALID_REQUEST",
                    f"This model has no LoRA of that name; it has {there}.",
                    param="loras",
                    details={"loras": self._names},
                )

    def activate(self, wanted: tuple[Lora, ...]) -> None:
        """Switch just these on; without any, the model computes as if it had none."""
        if wanted == self._active:
            return
        if wanted:
            self._pipe.enable_lora()
            self._pipe.set_adapters([a.name for a in wanted], [a.scale for a in wanted])
        else:
            self._pipe.disable_lora()
        self._active = wanted


def _load(pipe: Any, name: str, path: Path) -> None:
    where = {"weight_name": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # several adapters are meant to be there
            pipe.load_lora_weights(
                folder, adapter_name=name, use_safetensors=True, local_files_only=True, **where
            )
        known = {each for names in pipe.get_list_adapters().values() for each in names}
    except Exception as error:
        # The library raises nearly every kind for files that are none, or of another model.
        if fault_of(error) is not None:
            raise
        raise load_failed(f"The LoRA {name} does not load ({type(error).__name__}).") from error
    if name not in known:
        raise load_failed(f"The LoRA {name} holds nothing for this model.")
