"""Pictures on terminals: the bytes of each protocol, and which terminal takes which."""

import base64
import io
import re

import pytest
from PIL import Image

from cli.show.terminal_images import half_blocks, iterm, kitty, protocol_of, shown


def picture(width: int = 2, height: int = 2, kind: str = "PNG") -> bytes:
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (0, height // 2, width, height))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_terminal_kind_is_told_by_its_environment(
    environ: dict[str, str], protocol: str | None
) -> None:
    assert protocol_of(environ) == protocol


def test_kitty_gets_a_small_image_in_one_piece() -> None:
    assert kitty(b"abc") == "\x1b_Ga=T,f=100,m=0;YWJj\x1b\\"


def test_kitty_gets_a_large_one_in_chunks() -> None:
    data = bytes(range(256)) * 40
    parts = re.findall("\x1b_G(.*?);(.*?)\x1b\\\\", kitty(data))
    assert [control for control, _ in parts] == ["a=T,f=100,m=1", "m=1", "m=1", "m=0"]
    assert {len(text) for _, text in parts[:-1]} == {4096}
    assert base64.b64decode("".join(text for _, text in parts)) == data


def test_kitty_gets_png_whatever_the_file_is() -> None:
    text = shown(picture(kind="JPEG"), "kitty", 80)
    [(_, data)] = re.findall("\x1b_G(.*?);(.*?)\x1b\\\\", text)
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_iterm_gets_the_file_as_it_is() -> None:
    data = picture(kind="JPEG")
    text = base64.b64encode(data).decode()
    expected = f"\x1b]1337;File=inline=1;size={len(data)};preserveAspectRatio=1:{text}\x07"
    assert iterm(data) == expected


def test_half_blocks_are_two_pixels_each() -> None:
    assert half_blocks(picture(), 2) == "\x1b[38;2;255;0;0;48;2;0;0;255m▀" * 2 + "\x1b[0m\n"
    lines = half_blocks(picture(64, 32), 40).splitlines()
    assert len(lines) == 10
    assert all(line.count("▀") == 40 for line in lines)
