"""Asks for speech, shows progress, writes and plays the file (``bitinglip generate speech``)."""

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.errors import Failure
from cli.show.output import print_note
from cli.stream.output_names import free_name, write_file
from cli.stream.progress import Words, make

ROUTE = "/api/v1/inference/text-to-speech"
DEFAULT_FORMAT = "wav"
FORMATS = {".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".opus": "ogg", ".mp3": "mp3"}
_WORDS = Words("speech", "reading the text", "speaking", "finishing", "sentence")
#: what plays a file and ends, where it is installed
_PLAYERS = (
    ("afplay",),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("paplay",),
    ("aplay", "-q"),
)


def speak(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Request speech; return the InferenceResponse."""
    return make(client, ROUTE, body, _WORDS)


def write(answer: dict[str, Any], output: Path | None, text: str) -> Path | None:
    """Write the audio to a file (``-`` is stdout); return its path."""
    result = answer["result"]
    data = base64.b64decode(result["audio"])
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(data)
        return None
    path = output or free_name(text, result["seed"], result["format"])
    write_file(path, data)
    took = answer["processing_time"]
    facts = f"{result['duration']:.1f} s of sound in {took:.1f} s, seed {result['seed']}"
    voice = f", {result['voice']}" if result.get("voice") else ""
    print_note(f"Wrote {path} ({facts}{voice}).")
    return path


def play(path: Path) -> None:
    """Play the file with the first player that is installed. Raises Failure if there is none."""
    for command in _PLAYERS:
        if shutil.which(command[0]):
            subprocess.run([*command, str(path)], check=False)
            return
    names = ", ".join(command[0] for command in _PLAYERS)
    raise Failure(f"there is no player here to play it with; --play needs one of {names}")
