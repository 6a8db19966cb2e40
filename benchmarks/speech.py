"""Compares the speech engine with the library's plain call: the same small Bark and sentences.

    python -m benchmarks.speech [--shape tiny|small|bark] [--device cpu] [--requests 10] [--voice]

Seconds of computing for each second of sound, and until the first sound: one request, and several
in a row and at once, against the library's calls one after another; then where the time goes.
``bark`` has the real model's shape with random weights. No end token comes from random weights, so
every sentence has its full length: 6 seconds of sound with ``small``. ``--voice``: each request
has a voice preset of the published ones' length, which every window of the second stage reads.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BarkModel

from benchmarks.machine import describe, load_average
from benchmarks.random_bark import VOICE, make_bark
from workers.engines.speech.bark.speaker import BarkSpeaker
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import AudioDelta, DeviceKind, Failed, Load, SpeechDone, SpeechJob

_TEXT = "The quick brown fox jumps over the lazy dog."
_PROMPT = 257  #: positions of the first stage's prompt
_WARM_STEPS = 5


class Studio:
    """Holds both sides, over one model."""

    def __init__(
        self, folder: Path, out: str, device: DeviceKind, threads: int, voice: str | None, rows: int
    ) -> None:
        self._voice, self._out, self._device = voice, out, device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.library = BarkModel.from_pretrained(folder, dtype=dtype).eval().to(device)
        length = self.library.generation_config.semantic_config["max_input_semantic_length"]
        processor = AutoProcessor.from_pretrained(folder)
        self._asked = processor(_TEXT, voice_preset=voice, max_length=length).to(device)
        self.engine = SpeechEngine()
        spec = Load(
            model="bench",
            engine="speech",
            path=str(folder),
            device=device,
            threads=threads,
            max_batch=rows,
            kv_cache_bytes=1 << 40,  # not the limit
        )
        self.ready = self.engine.load(spec, lambda _part: None)

    def theirs(self, count: int) -> float:
        """Return seconds for so many requests by the library, one after another."""
        began = time.perf_counter()
        for seed in range(count):
            torch.manual_seed(seed)
            self.library.generate(**self._asked)
        self.finish()
        return time.perf_counter() - began

    def in_a_row(self, count: int) -> float:
        return sum(self.at_once(1)[0] for _ in range(count))

    def at_once(self, count: int) -> tuple[float, float, float]:
        """Return seconds by the engine, until its first sound, and seconds of sound."""
        began = time.perf_counter()
        for seed in range(count):
            job = SpeechJob(
                id=f"bench-{seed}", text=_TEXT, voice=self._voice, seed=seed, folder=self._out
            )
            self.engine.submit(self.engine.prepare(job))
        first, sound = 0.0, 0.0
        while self.engine.in_flight:
            for event in self.engine.step():
                assert not isinstance(event, Failed), event
                if isinstance(event, AudioDelta):
                    first = first or time.perf_counter() - began
                elif isinstance(event, SpeechDone):
                    sound += event.duration
        return time.perf_counter() - began, first, sound

    def finish(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def semantic_step(self, rows: int, steps: int) -> float:
        """Return the median seconds of a step of the first stage with so many rows, drawing left
        out."""
        assert isinstance(self.engine._model, BarkSpeaker)
        stage = self.engine._model.bark._stages["semantic"]
        slots = [slot for slot in (stage.open() for _ in range(rows)) if slot is not None]
        assert len(slots) == rows, f"the engine has {len(slots)} rows free, not {rows}"
        prompt = torch.randint(10_000, (rows, _PROMPT), device=stage.device)
        stage.read(slots, stage.embed(prompt))
        spent = []
        for _ in range(_WARM_STEPS + steps):
            tokens = torch.randint(10_000, (rows,)).tolist()
            self.finish()
            began = time.perf_counter()
            stage.step(slots, tokens)
            self.finish()
            spent.append(time.perf_counter() - began)
        for slot in slots:
            stage.close(slot)
        return statistics.median(spent[_WARM_STEPS:])


class StageClock:
    """Times the functions that each stage spends its time in: the library's, and ours.

    From then on the studio waits for the card after each of them, which slows its runs.
    """

    def __init__(self, studio: Studio) -> None:
        assert isinstance(studio.engine._model, BarkSpeaker)
        self._studio = studio
        bark, library = studio.engine._model.bark, studio.library
        semantic, coarse = bark._stages["semantic"], bark._stages["coarse"]
        functions: dict[str, list[tuple[Any, str]]] = {
            "semantic": [(library.semantic, "generate"), (semantic, "read"), (semantic, "step")],
            "coarse": [(library.coarse_acoustics, "generate"), (coarse, "read"), (coarse, "step")],
            "drawing": [(bark, "_choose")],
            "fine": [(library.fine_acoustics, "generate"), (bark._fine, "step")],
            "codec": [(library, "codec_decode"), (bark, "_samples")],
        }
        self._spent = dict.fromkeys(functions, 0.0)
        for stage, owned in functions.items():
            for owner, name in owned:
                setattr(owner, name, self._timed(getattr(owner, name), stage))

    def seconds(self, run: Callable[[], Any]) -> dict[str, float]:
        """Return how long each stage took in a run."""
        for stage in self._spent:
            self._spent[stage] = 0.0
        run()
        return dict(self._spent)

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **fields: Any) -> Any:
            began = time.perf_counter()
            found = function(*args, **fields)
            self._studio.finish()
            self._spent[stage] += time.perf_counter() - began
            return found

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["tiny", "small", "bark", "bark_short"], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--voice", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    load_before = load_average()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    folder = make_bark(arguments.folder, arguments.shape)
    with tempfile.TemporaryDirectory() as out:
        voice = VOICE if arguments.voice else None
        studio = Studio(folder, out, arguments.device, arguments.threads, voice, arguments.requests)
        print(
            f"{arguments.shape}, {studio.ready.dtype} on {studio.ready.device}, voice {voice}, "
            f"{arguments.threads} threads, {arguments.rounds} rounds, medians"
        )
        studio.at_once(1), studio.theirs(1)  # a warm-up of both
        _report(studio, arguments.requests, arguments.rounds)
        _report_stages(studio, arguments.requests)
        studio.engine.close()
    print(describe(load_before))


def _report(studio: Studio, requests: int, rounds: int) -> None:
    """Measure both sides by turns, so that a slow moment of the machine meets both."""
    rows = []
    for _ in range(rounds):
        theirs, row = studio.theirs(requests), studio.in_a_row(requests)
        rows.append((theirs, row, *studio.at_once(1), *studio.at_once(requests)))
    theirs, row, one, first, sound, many, first_of_many, sounds = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    print(f"{'':34}  seconds  s of sound/s  first sound")
    for name, seconds, made, begun in (
        (f"library, {requests} in a row", theirs, sounds, None),
        (f"engine, {requests} in a row", row, sounds, None),
        (f"engine, {requests} at once", many, sounds, first_of_many),
        ("engine, one", one, sound, first),
    ):
        heard = "" if begun is None else f"{begun:9.2f} s"
        print(f"{name:34}  {seconds:7.2f}  {made / seconds:12.2f}  {heard}")
    print(
        f"at once / in a row: {many / row:.2f}; library / engine in a row: {theirs / row:.2f}, "
        f"at once: {theirs / many:.2f}"
    )


def _report_stages(studio: Studio, requests: int) -> None:
    runs: list[tuple[str, Callable[[], Any]]] = [
        ("library, one", lambda: studio.theirs(1)),
        ("engine, one", lambda: studio.at_once(1)),
        (f"engine, {requests} at once", lambda: studio.at_once(requests)),
    ]
    clock = StageClock(studio)
    for number, (label, run) in enumerate(runs):
        spent = clock.seconds(run)
        if number == 0:
            print(f"{'seconds by stage':34}" + "".join(f"{stage:>10}" for stage in spent))
        print(f"{label:34}" + "".join(f"{seconds:10.2f}" for seconds in spent.values()))


if __name__ == "__main__":
    main()
