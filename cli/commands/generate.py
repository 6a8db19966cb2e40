"""Implements ``bitinglip generate``: one answer, for scripts and pipes."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.completion import models
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import clean, print_note, show_json

if TYPE_CHECKING:
    from cli.client import Client
    from cli.stream.text_stream import Answer

app = typer.Typer(no_args_is_help=True, help="Generate from one prompt.")

MaxTokensOption = Annotated[
    int | None, typer.Option(help="Maximum length of the answer in tokens.", min=1)
]
TemperatureOption = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0 takes the likeliest token.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of the sampling: the same seed gives the same answer.")
]


@app.command()
def text(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name of the model.", autocompletion=models("text")),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The prompt; without it, or as '-', read from stdin."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the answer into this file.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Nucleus sampling: draw from the likeliest tokens with this total probability."
        ),
    ] = None,
    typical_p: Annotated[
        float | None,
        typer.Option(
            help="Typical sampling: draw from the most typical tokens with this total probability."
        ),
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(help="Minimum length of the answer in tokens.", min=0)
    ] = None,
    seed: SeedOption = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop sequence: the answer ends before this text; may be repeated."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Number of answers.", min=1)
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Continue a prompt; the text streams to stdout as it comes."""
    from cli.stream.output_names import check_writable
    from cli.stream.text_stream import given_options

    body = {"model": model, "prompt": _prompt(prompt)} | given_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        typical_p=typical_p,
        min_tokens=min_tokens,
        seed=seed,
        n=count,
        stop_sequences=stop or None,
    )
    server = CliContext.of(home, config).need_server()
    if output is not None:
        check_writable(output)
    if as_json or output is not None:
        _whole(server, body, output, as_json=as_json)
    elif count is not None and count > 1:
        _several(server, body)
    else:
        _streamed(server, body)


class ImageFormat(StrEnum):
    png = "png"
    jpeg = "jpeg"
    webp = "webp"


@app.command()
def image(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Name of the model.", autocompletion=models("text-to-image")
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The prompt; without it, or as '-', read from stdin."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; '-' is stdout. By default named after the prompt.",
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the image in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the image in pixels.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps: more are finer and slower.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale: how closely the image follows the prompt.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="Negative prompt: what the image should not show.")
    ] = None,
    seed: SeedOption = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Number of images.", min=1)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Scheduler in place of the model's own.")
    ] = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option(
            "--format", help="Format of the file; by default from the suffix of --output."
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--image", help="Image to begin with (image-to-image).")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Mask: --image is changed only where this image is white or transparent."
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far the result may depart from --image, 0 to 1.")
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="NAME[:SCALE]",
            help="LoRA of the model, as NAME or NAME:SCALE; may be repeated.",
        ),
    ] = None,
    show: Annotated[
        bool | None,
        typer.Option(
            help="Show the image in the terminal.", show_default="where it can show pictures"
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Make an image; a bar shows the steps, then the file is written."""
    from cli.stream import image
    from cli.stream.output_names import check_writable, format_of
    from cli.stream.text_stream import given_options

    text = _prompt(prompt)
    body = {
        "model": model,
        "prompt": text,
        "format": format_of(
            output,
            image_format and image_format.value,
            image.FORMATS,
            image.DEFAULT_FORMAT,
        ),
    } | given_options(
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative,
        seed=seed,
        n=count,
        scheduler=scheduler,
        image=image.read_picture(source),
        mask=image.read_picture(mask),
        strength=strength,
        loras=[image.lora(each) for each in loras] if loras else None,
    )
    if not as_json or output is not None:
        check_writable(output)
    answer = image.draw(CliContext.of(home, config).need_server(), body)
    if as_json:
        show_json(answer)
    if not as_json or output is not None:
        paths = image.write(answer, output, text)
        image.show(paths, show)


class SoundFormat(StrEnum):
    wav = "wav"
    flac = "flac"
    ogg = "ogg"
    mp3 = "mp3"


@app.command()
def speech(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Name of the model.", autocompletion=models("text-to-speech")
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to speak; without it, or as '-', read from stdin."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; '-' is stdout. By default named after the prompt.",
        ),
    ] = None,
    voice: Annotated[
        str | None, typer.Option(help="Voice of the model; `models show` lists them.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language, such as en, where the voice does not decide it.")
    ] = None,
    seed: SeedOption = None,
    speed: Annotated[
        float | None, typer.Option(help="Speed of the speech, where the model supports it.")
    ] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(help="Sample rate in samples a second; by default the model's own."),
    ] = None,
    sound_format: Annotated[
        SoundFormat | None,
        typer.Option(
            "--format", help="Format of the file; by default from the suffix of --output."
        ),
    ] = None,
    play: Annotated[bool, typer.Option("--play", help="Play the sound too.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Say a text; a bar shows the sentences, then the file is written."""
    from cli.stream import speech
    from cli.stream.output_names import check_writable, format_of
    from cli.stream.text_stream import given_options

    text = _prompt(prompt)
    body = {
        "model": model,
        "text": text,
        "format": format_of(
            output,
            sound_format and sound_format.value,
            speech.FORMATS,
            speech.DEFAULT_FORMAT,
        ),
    } | given_options(
        voice=voice, language=language, seed=seed, speed=speed, sample_rate=sample_rate
    )
    if not as_json or output is not None:
        check_writable(output)
    answer = speech.speak(CliContext.of(home, config).need_server(), body)
    if as_json:
        show_json(answer)
    if not as_json or output is not None:
        path = speech.write(answer, output, text)
        if play and path is not None:
            speech.play(path)


def piped_text() -> str:
    """Read all of stdin as a prompt, whatever bytes it holds."""
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not text.strip():
        raise Failure("the prompt is empty")
    return text


def _prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="PROMPT")
    return piped_text()


def _streamed(server: "Client", body: dict[str, Any]) -> None:
    from cli.stream.text_stream import stream_answer

    last = ""

    def write(piece: str) -> None:
        nonlocal last
        last = piece
        typer.echo(clean(piece), nl=False)

    try:
        answer = stream_answer(server, body, write)
    finally:
        if last and not last.endswith("\n"):
            typer.echo()
    _show_figures(answer)


def _several(server: "Client", body: dict[str, Any]) -> None:
    """Write several answers one after the other, each under its number, when all are there."""
    from cli.stream.text_stream import stream_answer

    answer = stream_answer(server, body, lambda _: None)
    for choice in answer.response["result"]["choices"]:
        typer.echo(f"[{choice['index'] + 1}] {clean(choice['text'])}")
    _show_figures(answer)


def _whole(server: "Client", body: dict[str, Any], output: Path | None, *, as_json: bool) -> None:
    """Write the answer in one piece; a file holds exactly what the model wrote.

    Between several answers there is a line break.
    """
    from cli.stream.text_stream import stream_answer

    answer = stream_answer(server, body, lambda _: None)
    if output is not None:
        result = answer.response["result"]
        texts = [each["text"] for each in result.get("choices", [result])]
        output.write_text("\n".join(texts), encoding="utf-8", errors="replace")
        print_note(f"Wrote {output}.")
    if as_json:
        show_json(answer.response)
    else:
        _show_figures(answer)


def _show_figures(answer: "Answer") -> None:
    """Show the figures on a terminal only; in a script's log they would be noise."""
    if sys.stderr.isatty():
        print_note(answer.figures())
