"""Runs the image engine as the check does: loaded, and timed for one pass of pictures."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.recorder import Recorder
from workers.engines.image.engine import ImageEngine
from workers.engines.torch_env import release_cached
from workers.protocol import Failed, ImageDone, ImageJob, ImageOptions, Load

GUIDANCE = 7.5
MOST = 4  #: pictures at once
_seeds = itertools.count()


@dataclass(frozen=True, slots=True)
class Scale:
    """Says how large the pictures of a run are."""

    pipeline: str
    side: int  #: pixels
    steps: int
    few_steps: int  #: of the secondary rows
    name: str


SCALES = {
    "real": Scale("sdxl", 1024, 30, 10, "SDXL 1024²"),
    "tiny": Scale("tiny", 64, 3, 3, "tiny SDXL 64²"),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Holds the cost of one pass of the engine, in seconds and in bytes that the allocator
    reserved."""

    seconds: float
    step: float  #: a step of all pictures together, without the first step
    decode: float  #: from the last step to the files
    denoise_bytes: int
    total_bytes: int
    fallbacks: tuple[str, ...] = ()  #: what was done to save memory
    failure: str | None = None  #: the code of the error


@contextmanager
def loaded_engine(
    record: Recorder,
    folder: Path,
    dtype: str,
    options: ImageOptions | None = None,
    most: int = MOST,
) -> Iterator[ImageEngine]:
    """Load an engine and record how long that took."""
    release_cached(record.device)  # of the engine before, which its caller has left
    engine = ImageEngine()
    told = f"{SCALES[record.shape].name}: loaded by the engine, {dtype}"
    if options is not None:
        told += ", compiled" if options.compile else f", offload: {options.offload}"
    with record.seconds(told):
        engine.load(
            Load(
                model="bench",
                engine="image",
                path=str(folder),
                device=record.device,
                dtype=dtype,
                max_batch=most,
                image=options,
            ),
            lambda _part: None,
        )
    try:
        yield engine
    finally:
        engine.close()


def draw(
    record: Recorder,
    engine: ImageEngine,
    out: str,
    count: int,
    steps: int,
    *,
    may_fail: bool = False,
) -> Timing:
    """Have so many pictures drawn in one pass, whose steps are the engine's."""
    side = SCALES[record.shape].side
    record.synchronize()
    began = time.perf_counter()
    for seed in next_seeds(count):
        job = ImageJob(
            id=f"bench-{seed}",
            prompt=prompt_of(seed),
            width=side,
            height=side,
            steps=steps,
            seeds=(seed,),
            guidance_scale=GUIDANCE,
            folder=out,
        )
        engine.submit(engine.prepare(job))
    marks: list[float] = []
    denoise_bytes, called, finals = 0, 0, []
    while engine.in_flight:
        events = engine.step()
        called += 1
        finals += [each for each in events if isinstance(each, ImageDone | Failed)]
        if called in (1, steps):
            record.synchronize()
            marks.append(time.perf_counter())
            denoise_bytes = _reserved(record)
    record.synchronize()
    ended = time.perf_counter()
    failures = [each for each in finals if isinstance(each, Failed)]
    assert may_fail or not failures, failures
    return Timing(
        seconds=ended - began,
        step=(marks[-1] - marks[0]) / (steps - 1),
        decode=ended - marks[-1],
        denoise_bytes=denoise_bytes,
        total_bytes=_reserved(record),
        fallbacks=next(
            (each.memory_fallbacks for each in finals if isinstance(each, ImageDone)), ()
        ),
        failure=failures[0].code if failures else None,
    )


def usual_dtype(record: Recorder) -> str:
    return "float32" if record.device == "cpu" else "bfloat16"


def _reserved(record: Recorder) -> int:
    return torch.cuda.memory_reserved() if record.device == "cuda" else 0


def next_seeds(count: int) -> list[int]:
    """Return so many seeds that no picture has had yet."""
    return list(itertools.islice(_seeds, count))


def prompt_of(seed: int) -> str:
    """Return a prompt of its own for each picture, since the engine keeps what encoders said."""
    return f"a red fox in the snow {seed}"
