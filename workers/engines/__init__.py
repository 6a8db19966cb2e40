"""The registry of engines: names to modules, imported on use so that only a worker pays."""

import importlib

from workers.engines.base import Engine, Refused

ENGINES = {
    "fake": "workers.engines.fake:FakeEngine",
    "image": "workers.engines.image.engine:ImageEngine",
    "speech": "workers.engines.speech.engine:SpeechEngine",
    "text": "workers.engines.text.engine:TextEngine",
    "transcription": "workers.engines.transcription.engine:TranscriptionEngine",
}

#: engines that can split one model over several devices
MULTI_DEVICE = frozenset({"fake", "text"})

#: engines whose steps are long: where they share a CPU, they give way to those that stream
LOW_PRIORITY = frozenset({"image", "speech", "transcription"})


def make_engine(kind: str) -> Engine:
    """A fresh engine of that kind. Raises Refused for one that there is not."""
    if kind not in ENGINES:
        raise Refused("MODEL_LOAD_FAILED", f"There is no engine for models of the kind '{kind}'.")
    module, _, name = ENGINES[kind].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine
