"""What ``bitinglip generate image`` does: ask, show the steps, write the files."""

import base64
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.client import Client, refusal
from cli.failures import Failure
from cli.output import clean, console, note
from cli.pictures import protocol_of, shown

if TYPE_CHECKING:
    from rich.progress import Progress

ROUTE = "/api/v1/inference/image-generation"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_LONGEST_NAME = 40


def draw(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """The InferenceResponse of a request, with a bar on a terminal while it is made.

    Leaving by an exception, Ctrl-C too, cancels it on the server.
    """
    with _bar(body["model"]) as bar, client.stream(ROUTE, {**body, "stream": True}) as events:
        for name, data in events:
            if name == "completed":
                return data
            if name == "failed":
                raise refusal(data.get("error") or {})
            if name == "cancelled":
                raise Failure("the image was cancelled on the server")
            bar.tell(name, data)
    raise Failure("the connection broke off before the image was complete")


def read_picture(path: Path | None) -> str | None:
    """A picture to send, in base64."""
    if path is None:
        return None
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror})") from error


def lora(text: str) -> dict[str, Any]:
    """``NAME`` or ``NAME:SCALE``."""
    name, colon, scale = text.rpartition(":")
    if not colon:
        return {"name": text, "scale": 1.0}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME or NAME:SCALE") from None


def format_of(output: Path | None, chosen: str | None) -> str:
    """The chosen format, else the one that the file's name ends in, else png."""
    if chosen is not None:
        return chosen
    if output is None or str(output) == "-":
        return "png"
    if output.suffix.lower() not in FORMATS:
        raise typer.BadParameter(
            f"{output.name} should end in {', '.join(FORMATS)}; or give --format",
            param_hint="--output",
        )
    return FORMATS[output.suffix.lower()]


def write(answer: dict[str, Any], output: Path | None, prompt: str) -> list[Path]:
    """The images as files; ``-`` is stdout. Answers with where they are."""
    images = answer["result"]["images"]
    if output is not None and str(output) == "-":
        if len(images) > 1:
            raise Failure("stdout takes one image; leave -n away, or name a file with -o")
        sys.stdout.buffer.write(base64.b64decode(images[0]["b64"]))
        return []
    paths = []
    for number, image in enumerate(images, start=1):
        path = output or _free_name(prompt, image)
        if output is not None and len(images) > 1:
            path = output.with_name(f"{output.stem}-{number}{output.suffix}")
        try:
            path.write_bytes(base64.b64decode(image["b64"]))
        except OSError as error:
            raise Failure(f"{path} cannot be written ({error.strerror})") from error
        paths.append(path)
        seconds = answer["processing_time"]
        facts = f"{image['width']}x{image['height']}, seed {image['seed']}, {seconds:.1f} s"
        filtered = "; the model's safety checker made it black" if image.get("filtered") else ""
        note(f"Wrote {path} ({facts}){filtered}.")
    return paths


def show(paths: list[Path], wanted: bool | None) -> None:
    """The pictures in the terminal: where it can, or in blocks where that was asked for."""
    protocol = protocol_of(os.environ)
    if not sys.stdout.isatty() or wanted is False or (wanted is None and protocol is None):
        return
    for path in paths:
        columns = shutil.get_terminal_size().columns
        typer.echo(shown(path.read_bytes(), protocol, columns), nl=False)


def _free_name(prompt: str, image: dict[str, Any]) -> Path:
    """A name that says what is in it, of a file that is not there yet."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    stem = f"{words or 'image'}-{image['seed']}"
    suffix = f".{image['format']}"
    path, number = Path(stem + suffix), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}{suffix}"), number + 1
    return path


class _Bar:
    """What the server does, as a bar; says nothing without a terminal."""

    def __init__(self, model: str, bars: "Progress | None") -> None:
        self._model = model
        self._bars = bars
        self._task = bars.add_task(f"asking {clean(model)}", total=None, text="") if bars else None

    def tell(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "queued":
                self._show(f"in line for {self._model}", text=f"number {data.get('position', 1)}")
            case "loading":
                part = data.get("progress", 0)
                self._show(f"loading {self._model}", 100 * part, 100, f"{part:.0%}")
            case "started":
                self._show("reading the prompt")
            case "progress":
                step, steps = data["step"], data["steps"]
                what = "drawing" if step < steps else "finishing"
                self._show(what, step, steps, f"step {step}/{steps}")

    def _show(self, what: str, done: float = 0, total: float | None = None, text: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, description=clean(what), completed=done, total=total, text=text
            )


@contextmanager
def _bar(model: str) -> Iterator[_Bar]:
    if not sys.stderr.isatty():
        yield _Bar(model, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]:>12}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True) as bars:
        yield _Bar(model, bars)
