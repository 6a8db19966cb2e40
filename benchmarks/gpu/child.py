"""Runs one part in a process: ``python -m benchmarks.gpu.child FUNCTION DEVICE
SHAPE FOLDER PATH END``."""

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.recorder import Recorder, read_ceilings
from workers.protocol import DeviceKind


def run(arguments: list[str]) -> None:
    """Run a part: its FUNCTION, DEVICE, SHAPE, FOLDER and PATH; END is when it is killed."""
    function, device, shape, folder, path, end = arguments
    kind: DeviceKind = "cuda" if device == "cuda" else "cpu"
    ceilings = read_ceilings(Path(folder))
    recorder = Recorder(kind, shape, Path(folder), Path(path), ceilings, float(end))
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(recorder)
    (Path(folder) / "ceilings.json").write_text(json.dumps(recorder.ceilings))


if __name__ == "__main__":
    run(sys.argv[1:])
