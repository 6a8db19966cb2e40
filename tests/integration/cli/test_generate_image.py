"""``bitinglip generate image``, in pipes and on a terminal."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.support.cli_process import COMMAND, environ, run, terminal
from tests.support.server import Server

SMALL = ("--width", "64", "--height", "64", "--steps", "2")
DRAW = ("generate", "image", "demo-image")


@pytest.fixture
def work(server: Server, tmp_path: Path) -> Path:
    """Provide a folder to draw in, beside a home that leads to the server."""
    (tmp_path / "home").symlink_to(server.home)
    return tmp_path


def test_output_file_is_named_for_the_prompt_and_overwrites_nothing(work: Path) -> None:
    first = run(work / "home", *DRAW, "A red fox!", *SMALL, "--seed", "7")
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    assert first.stderr.startswith("Wrote a-red-fox-7.png (64x64, seed 7, ")
    run(work / "home", *DRAW, "A red fox!", *SMALL, "--seed", "7")
    names = {path.name for path in work.glob("*.png")}
    assert names == {"a-red-fox-7.png", "a-red-fox-7-2.png"}
    one, two = ((work / name).read_bytes() for name in sorted(names))
    assert one == two


def test_output_name_says_the_format_and_several_are_numbered(work: Path) -> None:
    done = run(work / "home", *DRAW, "x", *SMALL, "-o", "out.jpg", "-n", "2")
    assert done.returncode == 0, done.stderr
    for name in ("out-1.jpg", "out-2.jpg"):
        with Image.open(work / name) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))
    done = run(work / "home", *DRAW, "x", *SMALL, "-o", "out.webp", "--json")
    assert json.loads(done.stdout)["result"]["images"][0]["format"] == "webp"
    assert (work / "out.webp").exists()


def test_output_to_stdout_is_one_image(work: Path) -> None:
    command = [*COMMAND, *DRAW, "x", *SMALL, "-o", "-"]
    env = environ(work / "home")
    done = subprocess.run(command, capture_output=True, env=env, cwd=work, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(b"\x89PNG")
    two = run(work / "home", *DRAW, "x", *SMALL, "-o", "-", "-n", "2")
    assert (two.returncode, two.stdout) == (1, "")
    assert "stdout takes one image" in two.stderr


def test_input_image_leads_to_another(work: Path) -> None:
    run(work / "home", *DRAW, "x", *SMALL, "-o", "a.png")
    more = ("--image", "a.png", "--mask", "a.png", "--strength", "0.5")
    done = run(work / "home", *DRAW, "y", *SMALL, *more, "-o", "b.png")
    assert done.returncode == 0, done.stderr
    assert (work / "a.png").read_bytes() != (work / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("x", "-o", "a.gif"), 2, "should end in .png, .jpg, .jpeg, .webp"),
        (("x", "--lora", "fox:loud"), 2, "is not NAME or NAME:SCALE"),
        (("x", "--lora", "fox"), 1, "no LoRA of that name"),
        (("x", "--width", "65"), 1, "'width' must be a multiple of 8."),
        (("x", "--image", "nope.png"), 1, "nope.png cannot be read"),
        (("x", "--scheduler", "magic"), 1, "it has ddim, "),
        (("x", *SMALL, "-o", "no/such/a.png"), 1, "cannot be written"),
    ],
)
def test_error_of_generate_image_is_one_line(
    work: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(work / "home", *DRAW, *arguments)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())


def test_terminal_shows_the_steps_and_the_image(work: Path) -> None:
    large = ("--width", "256", "--height", "256", "--steps", "60", "--seed", "1")
    with terminal(work / "home", *DRAW, "a fox", *large, "--show") as shell:
        shell.wait_for(r"drawing .*step +[0-9]+/60")
        shell.wait_for(r"Wrote a-fox-1\.png \(256x256, seed 1, ")
        shell.wait_for("▀")
        assert shell.wait_for_end() == 0
    with terminal(work / "home", *DRAW, "a fox", *SMALL, TERM="xterm-kitty") as shell:
        shell.wait_for("\x1b_Ga=T,f=100,m=")
        assert shell.wait_for_end() == 0


def test_interrupt_cancels_the_image(work: Path, server: Server) -> None:
    endless = ("--width", "512", "--height", "512", "--steps", "150")
    with terminal(work / "home", *DRAW, "a fox", *endless) as shell:
        shell.wait_for(r"step +[0-9]+/150")
        shell.interrupt()
        assert shell.wait_for_end() == 130
    assert not [name for name in os.listdir(work) if name.endswith(".png")]
    assert server.status()["queued"] == 0
