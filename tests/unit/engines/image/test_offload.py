"""Groups of layers are offloaded by setting, and by what the system can do."""

from typing import Any

import pytest
import torch

from workers.engines.base import Refused

CARD = torch.device("cuda")


class Pipe:
    """Records how it is offloaded, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.told: dict[str, Any] = {}

    def enable_group_offload(self, **told: Any) -> None:
        self.told = told
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("low_ram", "kernel", "streams", "pins_late"),
    [
        (False, "6.1.0-18-amd64", True, False),
        (True, "6.1.0-18-amd64", True, True),
        (False, "5.15.153.1-microsoft-standard-WSL2", False, False),
        (True, "5.15.153.1-microsoft-standard-WSL2", False, False),
    ],
)
def test_offload_of_groups_streams_from_pinned_memory_but_under_wsl(
    low_ram: bool, kernel: str, streams: bool, pins_late: bool
) -> None:
    from workers.engines.image import memory  # diffusers: seconds, for the process that runs this

    pipe = Pipe()
    memory._offload_groups(pipe, CARD, low_ram=low_ram, kernel=kernel)
    assert (pipe.told["use_stream"], pipe.told["low_cpu_mem_usage"]) == (streams, pins_late)
    assert pipe.told["exclude_modules"] == ["vae"], "it is cast to float32 and back"
    assert pipe.told["onload_device"] == CARD


def test_offload_that_cannot_pin_memory_names_the_setting_that_needs_none() -> None:
    from workers.engines.image import memory

    pipe = Pipe(RuntimeError("CUDA error: out of memory"))
    with pytest.raises(Refused) as refused:
        memory._offload_groups(pipe, CARD, low_ram=False)
    assert refused.value.code == "MODEL_LOAD_FAILED", "the card has room, so none is made there"
    assert "group_low_ram" in refused.value.message
    for low_ram, error in ((True, RuntimeError("CUDA out of memory")), (False, ValueError("no"))):
        with pytest.raises(type(error)):
            memory._offload_groups(Pipe(error), CARD, low_ram=low_ram)
