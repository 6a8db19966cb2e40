"""Implements ``bitinglip transcribe``: the text of a sound file, or its subtitles."""

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from cli.completion import models
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import clean, print_note, show_json

if TYPE_CHECKING:
    from cli.client import Client

_ROUTE = "/api/v1/inference/transcription"
_CAPABILITY = "speech-to-text"


class TextFormat(StrEnum):
    txt = "txt"
    srt = "srt"
    vtt = "vtt"


def transcribe(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A sound file of any usual format; '-' is stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help="Name of the model; by default the only one that transcribes.",
            autocompletion=models("speech-to-text"),
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the text into this file.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Language of the sound, such as en; by default the model detects it."),
    ] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Translate into English.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Names and words that may occur, for their spelling.")
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Timestamps of segments or words, with --json.")
    ] = False,
    text_format: Annotated[
        TextFormat | None,
        typer.Option(
            "--format", help="Format of the text; by default from the suffix of --output, or txt."
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Transcribe a sound file; the text is shown as it comes."""
    from cli.stream.output_names import check_writable
    from cli.stream.text_stream import given_options

    if output is not None:
        check_writable(output)
    form = _format_of(output, text_format)
    if words and not as_json:
        raise typer.BadParameter("times of words are shown with --json only", param_hint="--words")
    server = CliContext.of(home, config).need_server()
    with _opened(file) as sound:
        fields = {"model": model or _only_model(server)} | given_options(
            language=language,
            task="translate" if translate else None,
            prompt=prompt,
            timestamps="word" if words else "segment",
        )
        shown = form is TextFormat.txt and output is None and not as_json and sys.stdout.isatty()
        answer = _ask(server, fields, file.name, sound, shown=shown)
    if as_json:
        show_json(answer)
    elif output is not None:
        _write(output, _text(answer, form))
        print_note(f"Wrote {output} ({_figures(answer)}).")
    elif not shown:
        typer.echo(clean(_text(answer, form)), nl=False)
    elif sys.stderr.isatty():
        print_note(_figures(answer))


def _ask(
    server: "Client", fields: dict[str, Any], name: str, sound: IO[bytes], *, shown: bool
) -> dict[str, Any]:
    """Return the InferenceResponse; ``shown``: each segment on the terminal as it comes."""
    from cli.stream.progress import Words, make

    def show(name: str, data: dict[str, Any]) -> None:
        if name == "segment":
            typer.echo(clean(data["text"].strip()))

    transcript = Words("transcript", "listening", "writing down", "finishing", "second")
    each = show if shown else None
    return make(server, _ROUTE, fields, transcript, upload=(name, sound), each=each)


def _only_model(server: "Client") -> str:
    names = [
        model["model_id"]
        for model in server.list("/api/v1/models")
        if _CAPABILITY in model["capabilities"]
    ]
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise Failure(
            "no model of the store transcribes; `bitinglip models pull openai/whisper-small` "
            "brings one"
        )
    raise Failure(f"several models transcribe; choose with --model: {', '.join(names)}")


def _opened(file: Path) -> IO[bytes]:
    if str(file) == "-":
        return io.BytesIO(sys.stdin.buffer.read())
    try:
        return file.open("rb")
    except OSError as error:
        raise Failure(f"{file} cannot be read ({error.strerror})") from error


def _format_of(output: Path | None, chosen: TextFormat | None) -> TextFormat:
    if chosen is not None:
        return chosen
    ending = output.suffix.lower().removeprefix(".") if output is not None else ""
    return TextFormat(ending) if ending in list(TextFormat) else TextFormat.txt


def _text(answer: dict[str, Any], form: TextFormat) -> str:
    if form is TextFormat.txt:
        return f"{answer['result']['text']}\n"
    import msgspec

    from bitinglip.wire.transcription.subtitles import srt, vtt
    from workers.protocol import Segment

    segments = msgspec.convert(answer["result"]["segments"], list[Segment])
    return srt(segments) if form is TextFormat.srt else vtt(segments)


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{output} cannot be written ({error.strerror})") from error


def _figures(answer: dict[str, Any]) -> str:
    result, took = answer["result"], answer["processing_time"]
    spoken = f", {result['language']}" if result["language"] else ""
    return f"{result['duration']:.1f} s of sound in {took:.1f} s{spoken}"
