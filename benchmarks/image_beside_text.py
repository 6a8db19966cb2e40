"""Measure what images do to text on the same machine: time between tokens, alone and beside them.

    python -m benchmarks.image_beside_text [--tokens 200] [--streams 2] [--rounds 3]

A server with the random 135M Llama and a small random image pipeline, each in its own worker. Text
streams alone, then while images are drawn without a pause; the two alternate.
"""

import argparse
import statistics
import tempfile
import threading
from pathlib import Path

import httpx

from benchmarks.http_client import make_target
from benchmarks.load import CHAT, Report, chat_body, closed_loop, percentile, run
from benchmarks.machine import describe, load_average
from benchmarks.random_llama import make_model
from benchmarks.random_pipeline import make_pipeline
from benchmarks.servers import BitingLip, import_model

IMAGE = "/api/v1/inference/image-generation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    print(describe(load_average()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        import_model(work, make_model(arguments.folder / "llama-135m"), "text")
        import_model(work, make_pipeline(arguments.folder, "small"), "image")
        with BitingLip(work, *arguments.sets) as server:
            _rounds(server, arguments)


def _rounds(server: BitingLip, arguments: argparse.Namespace) -> None:
    _text(server, arguments)
    _draw(server, arguments.size)
    server.settle()
    alone: list[Report] = []
    beside: list[Report] = []
    images: list[float] = []
    for _ in range(arguments.rounds):
        alone.append(_text(server, arguments))
        with _Painter(server, arguments.size) as painter:
            beside.append(_text(server, arguments))
        images += painter.seconds
    for name, reports in (("alone", alone), ("beside images", beside)):
        middle = [
            statistics.median(percentile(report.gaps, percent) for report in reports)
            for percent in (50, 95)
        ]
        print(
            f"{name:14} between tokens p50 {1000 * middle[0]:6.1f} ms  "
            f"p95 {1000 * middle[1]:6.1f} ms"
        )
    print(f"an image meanwhile took {statistics.median(images):.2f} s")


def _text(server: BitingLip, arguments: argparse.Namespace) -> Report:
    more = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
    bodies = [
        chat_body("text", f"{number} tell me a story", arguments.tokens, stream=True, **more)
        for number in range(arguments.streams)
    ]
    target = make_target(server.url + CHAT, bodies, server.key)
    streams = arguments.streams
    report = run(closed_loop(target, concurrency=streams, requests=streams))
    if report.errors:
        raise SystemExit(f"text failed: {report.as_dict()}")
    return report


def _draw(server: BitingLip, size: int) -> float:
    body = {"model": "image", "prompt": "a fox", "width": size, "height": size, "steps": 10}
    headers = {"Authorization": f"Bearer {server.key}"}
    answer = httpx.post(server.url + IMAGE, json=body, headers=headers, timeout=300)
    answer.raise_for_status()
    seconds: float = answer.json()["processing_time"]
    return seconds


class _Painter:
    """Makes images one after another, until the end of the ``with`` block."""

    def __init__(self, server: BitingLip, size: int) -> None:
        self.seconds: list[float] = []
        self._server = server
        self._size = size
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "_Painter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._enough.is_set():
            self.seconds.append(_draw(self._server, self._size))


if __name__ == "__main__":
    main()
