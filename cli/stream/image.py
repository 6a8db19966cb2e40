"""Asks for images, shows the steps and writes the files (``bitinglip generate image``)."""

import base64
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import typer

from cli.client import Client
from cli.errors import Failure
from cli.show.output import print_note
from cli.show.terminal_images import protocol_of, shown
from cli.stream.output_names import free_name, write_file
from cli.stream.progress import Words, make

ROUTE = "/api/v1/inference/image-generation"
DEFAULT_FORMAT = "png"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_WORDS = Words("image", "reading the prompt", "drawing", "finishing", "step")


def draw(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Request images; return the InferenceResponse."""
    return make(client, ROUTE, body, _WORDS)


def read_picture(path: Path | None) -> str | None:
    """Read an image to send, in base64."""
    if path is None:
        return None
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror})") from error


def lora(text: str) -> dict[str, Any]:
    """Parse ``NAME`` or ``NAME:SCALE``."""
    name, colon, scale = text.rpartition(":")
    if not colon:
        return {"name": text, "scale": 1.0}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME or NAME:SCALE") from None


def write(answer: dict[str, Any], output: Path | None, prompt: str) -> list[Path]:
    """Write the images to files (``-`` is stdout); return their paths."""
    images = answer["result"]["images"]
    if output is not None and str(output) == "-":
        if len(images) > 1:
            raise Failure("stdout takes one image; leave -n away, or name a file with -o")
        sys.stdout.buffer.write(base64.b64decode(images[0]["b64"]))
        return []
    paths = []
    for number, image in enumerate(images, start=1):
        path = output or free_name(prompt, image["seed"], image["format"])
        if output is not None and len(images) > 1:
            path = output.with_name(f"{output.stem}-{number}{output.suffix}")
        write_file(path, base64.b64decode(image["b64"]))
        paths.append(path)
        seconds = answer["processing_time"]
        facts = f"{image['width']}x{image['height']}, seed {image['seed']}, {seconds:.1f} s"
        filtered = "; the model's safety checker made it black" if image.get("filtered") else ""
        print_note(f"Wrote {path} ({facts}){filtered}.")
    return paths


def show(paths: list[Path], wanted: bool | None) -> None:
    """Show the images in the terminal if it can, or in half blocks if that was asked for."""
    protocol = protocol_of(os.environ)
    if not sys.stdout.isatty() or wanted is False or (wanted is None and protocol is None):
        return
    for path in paths:
        columns = shutil.get_terminal_size().columns
        typer.echo(shown(path.read_bytes(), protocol, columns), nl=False)
