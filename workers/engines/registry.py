"""Lists the engines; their modules are imported on use, so that only workers import torch."""

import importlib
from dataclasses import dataclass

from workers.engines.base import Engine, Refused


@dataclass(slots=True, frozen=True)
class EngineInfo:
    """Describes an engine for the gateway and a worker's start, which must not import it."""

    module: str  #: "package.module:Class"
    preimport: tuple[str, ...] = ()  #: modules that a spare imports: their libraries take seconds
    multi_device: bool = False  #: it can split one model over several devices
    low_priority: bool = False  #: its steps are long: on a CPU it gives way to those that stream


ENGINES = {
    "fake": EngineInfo("workers.engines.fake:FakeEngine", multi_device=True),
    "embedding": EngineInfo(
        "workers.engines.embedding.engine:EmbeddingEngine",
        preimport=("workers.engines.embedding.preimport",),
    ),
    "image": EngineInfo(
        "workers.engines.image.engine:ImageEngine",
        preimport=("workers.engines.image.preimport",),
        low_priority=True,
    ),
    "speech": EngineInfo(
        "workers.engines.speech.engine:SpeechEngine",
        preimport=("workers.engines.speech.preimport",),
        low_priority=True,
    ),
    "text": EngineInfo(
        "workers.engines.text.engine:TextEngine",
        preimport=("workers.engines.text.preimport",),
        multi_device=True,
    ),
    "transcription": EngineInfo(
        "workers.engines.transcription.engine:TranscriptionEngine",
        preimport=("workers.engines.transcription.preimport",),
        low_priority=True,
    ),
}

_UNKNOWN = EngineInfo("")


def engine_info(kind: str) -> EngineInfo:
    """Return the row of an engine; a row of defaults if it does not exist."""
    return ENGINES.get(kind, _UNKNOWN)


def make_engine(kind: str) -> Engine:
    """Make an engine of that kind. Raises Refused if it does not exist."""
    if kind not in ENGINES:
        raise Refused("MODEL_LOAD_FAILED", f"There is no engine for models of the kind '{kind}'.")
    module, _, name = ENGINES[kind].module.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine
