"""Search for NVML: by the loader's path, then in folders that it does not know."""

import ctypes.util
from pathlib import Path

import pytest

from tests.support.nvml import NVMLError, StandInCard, StandInNvml
from workers.devices.nvml import Nvml

#: a library that can be loaded stands for NVML: what it holds is pynvml's affair
LOADABLE = Path(ctypes.util.find_library("c") or "libc.so.6")


class LateNvml(StandInNvml):
    """Stands in for a library that is not in the loader's path until something has loaded it."""

    def nvmlInit(self) -> None:  # noqa: N802  pynvml's name
        self.calls += 1
        if self.calls == 1:
            raise NVMLError(self.NVML_ERROR_LIBRARY_NOT_FOUND)
        super().nvmlInit()


def test_library_is_found_in_a_folder_that_the_loader_does_not_know(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_text("no library")
    nvml = Nvml(LateNvml(StandInCard()), [tmp_path / "none", broken, LOADABLE])
    nvml.open()
    assert nvml.is_open
    assert len(nvml.find(None).cards) == 1
    nvml.close()


def test_library_that_is_nowhere_is_told_as_absent(tmp_path: Path) -> None:
    nvml = Nvml(LateNvml(StandInCard()), [tmp_path / "none"])
    with pytest.raises(NVMLError) as absent:
        nvml.open()
    assert nvml.is_absent(absent.value)
    assert not nvml.is_open
