"""Runs one part in a process: ``python -m benchmarks.gpu.child FUNCTION DEVICE
SHAPE FOLDER PATH``."""

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.recorder import Recorder, read_ceilings
from workers.protocol import DeviceKind


def run(arguments: list[str]) -> None:
    """Run a part: its FUNCTION, DEVICE, SHAPE, FOLDER and PATH."""
    function, device, shape, folder, path = arguments
    kind: DeviceKind = "cuda" if device == "cuda" else "cpu"
    recorder = Recorder(kind, shape, Path(folder), Path(path), read_ceilings(Path(folder)))
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(recorder)
    (Path(folder) / "ceilings.json").write_text(json.dumps(recorder.ceilings))


if __name__ == "__main__":
    run(sys.argv[1:])
