"""Compares the image engine with a bare diffusers call: the same pipeline, seeds and steps.

    python -m benchmarks.images [--shape small|sdxl] [--size 256] [--steps 10] [--device cpu]

For one request and for several at once: seconds an image, and what the engine adds to the bare
call (several: to bare calls one after another). Rounds alternate; medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.random_pipeline import make_pipeline
from workers.engines.image.engine import ImageEngine
from workers.protocol import Failed, ImageJob, ImageOptions, Load

_PROMPT = "a red fox in the snow"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["small", "sdxl"], default="small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    folder = make_pipeline(arguments.folder, arguments.shape)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    bare = DiffusionPipeline.from_pretrained(folder, dtype=dtype).to(arguments.device)
    bare.set_progress_bar_config(disable=True)
    engine = ImageEngine()
    ready = engine.load(
        Load(
            model="bench",
            engine="image",
            path=str(folder),
            device=arguments.device,
            threads=arguments.threads,
            image=ImageOptions(compile=arguments.compile),
        ),
        lambda _part: None,
    )
    print(
        f"torch {torch.__version__}, {arguments.shape}, {ready.dtype} on {ready.device}, "
        f"{arguments.size} x {arguments.size}, {arguments.steps} steps, {arguments.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as out:
        for count in arguments.at_once:
            _compare(arguments, bare, engine, out, count)
    engine.close()


def _compare(
    arguments: argparse.Namespace, bare: Any, engine: ImageEngine, out: str, count: int
) -> None:
    def by_library() -> None:
        for seed in range(count):
            bare(
                prompt=_PROMPT,
                width=arguments.size,
                height=arguments.size,
                num_inference_steps=arguments.steps,
                guidance_scale=7.5,
                generator=torch.Generator().manual_seed(seed),
            )

    def by_engine() -> None:
        for seed in range(count):
            engine.submit(engine.prepare(_job(arguments, out, seed)))
        while engine.in_flight:
            for event in engine.step():
                assert not isinstance(event, Failed), event

    by_library()
    by_engine()
    theirs, ours = [], []
    for _ in range(arguments.rounds):
        theirs.append(_seconds(by_library))
        ours.append(_seconds(by_engine))
    library, own = statistics.median(theirs) / count, statistics.median(ours) / count
    print(
        f"{count:3d} at once  bare {library:8.3f} s/image  engine {own:8.3f} s/image  "
        f"{100 * (own / library - 1):+6.1f} %"
    )


def _job(arguments: argparse.Namespace, out: str, seed: int) -> ImageJob:
    return ImageJob(
        id=f"bench-{seed}",
        prompt=_PROMPT,
        width=arguments.size,
        height=arguments.size,
        steps=arguments.steps,
        seeds=(seed,),
        folder=out,
    )


def _seconds(work: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
