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

    def __init__(self, pipe: Any, files: dict[str, str], own: str | None = None) -> None:
        """Load all of ``files``, by name. Raises Refused for one that does not fit the model.

        ``own``: the name of the one that is on, whole, for calls that do not name it.
        """
        self._pipe = pipe
        self._names = sorted(files)
        #: what the library calls them: names of modules hold no dots
        self._keys = {name: f"lora_{place}" for place, name in enumerate(self._names)}
        self._own = () if own is None else (Lora(own),)
        self._active: tuple[Lora, ...] | None = ()  #: None: a switch has failed
        for name in self._names:
            _load(pipe, name, self._keys[name], Path(files[name]))
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
        """Switch just these on; without any, the model computes as if it had none but its own."""
        named = {each.name for each in wanted}
        wanted = (*(each for each in self._own if each.name not in named), *wanted)
        if wanted == self._active:
            return
        self._active = None  # until the library has switched all of them
        if wanted:
            self._pipe.enable_lora()
            keys = [self._keys[each.name] for each in wanted]
            self._pipe.set_adapters(keys, [each.scale for each in wanted])
        else:
            self._pipe.disable_lora()
        self._active = wanted


def _load(pipe: Any, name: str, key: str, path: Path) -> None:
    where = {"weight_name": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # several adapters are meant to be there
            pipe.load_lora_weights(
                folder, adapter_name=key, use_safetensors=True, local_files_only=True, **where
            )
        known = {each for names in pipe.get_list_adapters().values() for each in names}
    except Exception as error:
        # The library raises nearly every kind for files that are none, or of another model.
        if fault_of(error) is not None:
            raise
        raise load_failed(f"The LoRA {name} does not load ({type(error).__name__}).") from error
    if key not in known:
        raise load_failed(f"The LoRA {name} holds nothing for this model.")
