"""Times the README's first minutes on a new home, with the products installed already:

    python -m benchmarks.first_minutes

The first start, then its commands one after the other: a streamed chat, an image, a sound and its
transcript. Each finds its model unloaded, and loads it. Whisper is a tiny one with random weights,
imported in place of the download of a real one.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.machine import describe, load_average
from benchmarks.random_whisper import make_whisper
from benchmarks.servers import BITINGLIP, BitingLip, clean_environment

_QUESTION = {"role": "user", "content": "What is BitingLip?"}
_COMMANDS = {
    "an image": 'generate image demo-image "a red circle" --width 256 --height 256 -o circle.png',
    "a sound": 'generate speech demo-speech "Hello there." -o hello.wav',
    "a transcript": "transcribe hello.wav",
}


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = _measure(work, make_whisper(work, "tiny"))
    print("| | took | since the start |\n|---|---|---|")
    for name, took, since in rows:
        print(f"| {name} | {took:.1f} s | {since:.1f} s |")
    print(f"\n{describe(load)}")


def _measure(work: Path, whisper: Path) -> list[tuple[str, float, float]]:
    """Return what each step took, and when it was done."""
    began = last = time.monotonic()
    rows = []

    def done(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        rows.append((name, now - last, now - began))
        last = now

    with BitingLip(work, demo=True) as server:
        done("`bitinglip serve` answers")
        headers = {"Authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
            _chat(client)
            done("the first token of a streamed chat")
            _chat(client)
            done("the first token of the next one")
        for name, words in _COMMANDS.items():
            if name == "a transcript":
                _run(work, f"models import {whisper} --name whisper")
                done("`models import` of a Whisper")
            _run(work, words)
            done(name)
    return rows


def _chat(client: httpx.Client) -> None:
    """Ask, and return at the first token."""
    body = {"model": "demo-text", "stream": True, "messages": [_QUESTION]}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            if choice["delta"].get("content"):
                return


def _run(work: Path, words: str) -> None:
    """Run a command of ours as a shell does; what it makes lies in the folder."""
    command = " ".join([*BITINGLIP, words, f"--home {work / 'home'}"])
    environment = clean_environment()
    subprocess.run(
        command, shell=True, check=True, cwd=work, env=environment, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
