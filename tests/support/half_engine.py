"""An engine whose models give no numbers but in float32.

Importing this module adds it to the table of engines, in the test's process and in the worker's.
"""

from collections.abc import Callable

from msgspec.structs import replace

from workers.engines.base import Refused
from workers.engines.fake import FakeEngine
from workers.engines.registry import ENGINES, EngineInfo
from workers.faults import NO_NUMBERS
from workers.protocol import Load, Ready

ENGINES["half"] = EngineInfo(f"{__name__}:HalfEngine", preimport=(__name__,))


class HalfEngine(FakeEngine):
    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        if spec.dtype != "float32":
            text = f"The model's output is not a number. {NO_NUMBERS.sentence}"
            raise Refused("MODEL_LOAD_FAILED", text, fault="no numbers")
        return replace(super().load(spec, progress), dtype=spec.dtype)

    def device_bytes(self) -> int | None:
        return 1
