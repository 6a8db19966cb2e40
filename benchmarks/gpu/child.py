"""The process of one part: ``python -m benchmarks.gpu.child FUNCTION DEVICE SHAPE FOLDER PATH``."""

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.supervisor import read_ceilings
from workers.protocol import DeviceKind


def main() -> None:
    function, device, shape, folder, path = sys.argv[1:]
    kind: DeviceKind = "cuda" if device == "cuda" else "cpu"
    recorder = Recorder(kind, shape, Path(folder), Path(path), read_ceilings(Path(folder)))
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(recorder)
    (Path(folder) / "ceilings.json").write_text(json.dumps(recorder.ceilings))


if __name__ == "__main__":
    main()
