"""An engine that compiles at its load and is silent at its first step, as long as files exist.

Importing this module adds it to the table of engines, in the test's process and in the worker's.
"""

import time
from collections.abc import Callable
from pathlib import Path

from workers.engines.activity import FirstUse, busy_with
from workers.engines.fake import FakeEngine
from workers.engines.registry import ENGINES, EngineInfo
from workers.protocol import Event, Load, Ready

COMPILES, STEPS = "compiles", "steps"  #: the files, in the model's folder
_LOOK_SECONDS = 0.02
ENGINES["slow"] = EngineInfo(f"{__name__}:SlowEngine", preimport=(__name__,))


class SlowEngine(FakeEngine):
    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        self._folder = Path(spec.path)
        self._first_use = FirstUse()
        with busy_with("compile"):
            self._wait_for(COMPILES)
        return super().load(spec, progress)

    def step(self) -> list[Event]:
        with self._first_use.of():
            self._wait_for(STEPS)
        self._first_use.done()
        return super().step()

    def _wait_for(self, name: str) -> None:
        while (self._folder / name).exists():
            time.sleep(_LOOK_SECONDS)

    def device_bytes(self) -> int | None:
        return 1
