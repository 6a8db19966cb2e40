"""An engine whose loads run out of memory as often as a file in its model's folder says.

Importing this module adds it to the table of engines, in the test's process and in the worker's.
"""

from collections.abc import Callable
from pathlib import Path

from workers.engines.base import Refused
from workers.engines.fake import FakeEngine
from workers.engines.registry import ENGINES, EngineInfo
from workers.protocol import Load, Ready

FILE = "fails"
HELD = 600_000_000  #: bytes that it says it holds
ENGINES["short"] = EngineInfo(f"{__name__}:ShortEngine", preimport=(__name__,))


class ShortEngine(FakeEngine):
    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        file = Path(spec.path) / FILE
        left = int(file.read_text()) if file.exists() else 0
        if left:
            file.write_text(str(left - 1))
            raise Refused("OUT_OF_MEMORY", "The device has not enough memory for this model.")
        return super().load(spec, progress)

    def device_bytes(self) -> int | None:
        return HELD
