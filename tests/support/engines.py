"""An engine of each kind with a tiny model, all of one shape, so that one suite can ask them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tests.support import audio
from tests.support.engine_runs import run_to_end
from tests.support.models import bark, embedding, text, whisper
from workers.engines.base import Engine, Refused
from workers.engines.registry import make_engine
from workers.protocol import (
    EmbeddingDone,
    EmbeddingJob,
    Event,
    FakeOptions,
    Final,
    ImageDone,
    ImageJob,
    Job,
    Load,
    Ready,
    Sampling,
    SpeechDone,
    SpeechJob,
    Success,
    TextDone,
    TextJob,
    TranscriptionDone,
    TranscriptionJob,
    audio_file_name,
    image_file_name,
)

_MAX_STEPS = 10_000


@dataclass
class Subject:
    """Holds an engine with its model, jobs for it, and the place in the model where tests break
    it."""

    kind: str
    engine: Engine
    ready: Ready
    progress: list[float]  #: the fractions that the load has told
    folder: Path
    make_job: Callable[["Subject", str, Mapping[str, Any]], Job]
    refused: Mapping[str, Any]  #: fields of a job that the engine refuses
    module: Any = None  #: a part of the model that every job runs through; the fake has none
    fault: str = ""  #: what the fake engine's prompts begin with
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(_MAX_STEPS)))

    def job(self, **fields: Any) -> Job:
        return self.make_job(self, f"{self.kind}{next(self.numbers)}", fields)

    def submit(self, *jobs: Job) -> list[Event]:
        """Hand jobs to the engine as the worker's loop does; the events are those of refusals."""
        refusals: list[Event] = []
        for job in jobs:
            try:
                self.engine.submit(self.engine.prepare(job))
            except Refused as refused:
                refusals.append(refused.final(job.id))
        return refusals

    def run(self, *jobs: Job) -> list[Event]:
        """Run jobs to their ends; afterwards nothing is held."""
        return self.submit(*jobs) + run_to_end(self.engine)

    def output(self, job: Job) -> Any:
        """Run a job that succeeds, and return what the client gets."""
        return self.read(self.run(job), job)

    def read(self, events: list[Event], job: Job) -> Any:
        """Return what the client of a finished job gets, as a text or as an array of numbers."""
        done = final(events, job)
        assert isinstance(done, Success), done
        match done:
            case TextDone() | TranscriptionDone():
                return done.text
            case ImageDone():
                with Image.open(self.folder / image_file_name(job.id, 0, "png")) as image:
                    return np.asarray(image).astype(int)
            case EmbeddingDone():
                return (np.frombuffer(done.vectors, "<f4") * 1000).astype(int)
            case SpeechDone():
                path = self.folder / audio_file_name(job.id, "wav")
                return soundfile.read(path, dtype="int16")[0].astype(int)

    def raise_from_model(self, patch: pytest.MonkeyPatch, error: Exception) -> None:
        """Let the model raise the error; the fake engine, which has none, is told to do it."""

        def forward(*_: Any, **__: Any) -> None:
            raise error

        if self.module is None:
            patch.setattr(self, "fault", f"!raise {error}")
        else:
            patch.setattr(self.module, "forward", forward)

    def undo_fallbacks(self) -> None:
        """Take back what an engine does for a while to save memory: images look different then."""
        if self.kind == "image":
            inside(self.engine)._fallbacks.revert_all()

    def fill_with_nan(self, patch: pytest.MonkeyPatch) -> None:
        """Let the part of the model compute nothing but NaN."""
        usual = self.module.forward

        def forward(*values: Any, **named: Any) -> torch.Tensor:
            return torch.full_like(usual(*values, **named), torch.nan)

        patch.setattr(self.module, "forward", forward)


def final(events: list[Event], job: Job) -> Final:
    """Return the one final event of a job, after which nothing is told of it."""
    of_job = [event for event in events if getattr(event, "id", None) == job.id]
    finals = [event for event in of_job if isinstance(event, Final)]
    assert len(finals) == 1, "exactly one final event"
    assert of_job[-1] is finals[0]
    return finals[0]


def is_same(output: Any, expected: Any) -> bool:
    """True for the same text, or numbers that differ by rounding at most."""
    if isinstance(output, str):
        return bool(output == expected)
    return bool(output.shape == expected.shape and np.abs(output - expected).max() <= 2)


# ---- one of each kind ----------------------------------------------------------------------------


def _open(kind: str, folder: Path, **spec: Any) -> tuple[Engine, Ready, list[float], Path]:
    engine = make_engine(kind)
    progress: list[float] = []
    load = Load(model=kind, engine=kind, path=str(folder / "model"), threads=1, **spec)
    ready = engine.load(load, progress.append)
    return engine, ready, progress, folder


def inside(engine: object) -> Any:
    """Return an engine for a test that reaches for its private parts, to make them fail."""
    return engine


def _fake(folder: Path) -> Subject:
    opened = _open("fake", folder, fake=FakeOptions(faults=True))
    return Subject("fake", *opened, _text_job, {"prompt": "word " * 9000})


def _text(folder: Path) -> Subject:
    text.make_tiny_model("llama", folder / "model")
    opened = _open("text", folder, dtype="float32", kv_cache_bytes=1 << 20)
    decoder = inside(opened[0])._runner._decoder
    return Subject("text", *opened, _text_job, {"prompt": "word " * 9000}, decoder)


def _embedding(folder: Path) -> Subject:
    embedding.make(folder / "model")
    opened = _open("embedding", folder)
    inside(opened[0])._step_tokens = 12  # a step for each text
    norm = inside(opened[0])._loaded.model.embeddings.LayerNorm
    return Subject("embedding", *opened, _embedding_job, {"prompt_name": "none"}, norm)


def _image(folder: Path) -> Subject:
    from tests.support.models import pipelines  # diffusers: seconds, for the process that runs this

    pipelines.make("sd", folder / "model")
    opened = _open("image", folder)
    unet = inside(opened[0])._pipelines.base.unet
    return Subject("image", *opened, _image_job, {"scheduler": "nobody's"}, unet.conv_out)


def _speech(folder: Path) -> Subject:
    bark.make(folder / "model", tokens=10)
    opened = _open("speech", folder)
    stage = inside(opened[0])._model.bark._stages["semantic"]
    norm = stage._model.layernorm_final
    return Subject("speech", *opened, _speech_job, {"voice": "nobody"}, norm)


def _transcription(folder: Path) -> Subject:
    whisper.make(folder / "model", **whisper.LENIENT)
    audio.write(folder / "sound.wav", audio.melody(3))
    opened = _open("transcription", folder)
    norm = inside(opened[0])._loaded.model.model.decoder.layer_norm
    return Subject("transcription", *opened, _transcription_job, {"language": "Martian"}, norm)


def _text_job(subject: Subject, name: str, fields: Mapping[str, Any]) -> Job:
    prompt = subject.fault or fields.get("prompt", "one two three")
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    return TextJob(id=name, prompt=prompt, sampling=sampling, stream=fields.get("stream", True))


def _embedding_job(_: Subject, name: str, fields: Mapping[str, Any]) -> Job:
    return EmbeddingJob(id=name, **{"texts": ("one two",) * 3, "stream": True, **fields})


def _image_job(subject: Subject, name: str, fields: Mapping[str, Any]) -> Job:
    fields = {"width": 64, "height": 64, "steps": 3, "seeds": (3,), **fields}
    return ImageJob(id=name, prompt="a cat", folder=str(subject.folder), **fields)


def _speech_job(subject: Subject, name: str, fields: Mapping[str, Any]) -> Job:
    fields = {"voice": bark.VOICES[0], "seed": 3, **fields}
    return SpeechJob(id=name, text="Fine!", folder=str(subject.folder), **fields)


def _transcription_job(subject: Subject, name: str, fields: Mapping[str, Any]) -> Job:
    path = subject.folder / "sound.wav"
    return TranscriptionJob(id=name, path=str(path), max_seconds=100.0, **fields)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "fake": _fake,
    "embedding": _embedding,
    "image": _image,
    "speech": _speech,
    "text": _text,
    "transcription": _transcription,
}
