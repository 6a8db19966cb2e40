"""Headers of pictures: what the library says of good files, and bounds for hostile ones."""

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from bitinglip.results.pictures import IsAnimation, NotAPicture, size_of

PNG = b"\x89PNG\r\n\x1a\n"


def made(kind: str, mode: str = "RGB", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (301, 72)).save(out, kind, **more)
    return out.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def frame(width: int, height: int) -> bytes:
    return b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


IHDR = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
SCAN = b"\xff\xda\x00\x0c" + bytes(10)


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        made("png"),
        made("png", "RGBA", pnginfo=None, dpi=(72, 72)),
        made("jpeg"),
        made("jpeg", progressive=True, exif=Image.Exif().tobytes(), icc_profile=bytes(200_000)),
        made("webp"),
        made("webp", "RGBA"),
        made("webp", lossless=True),
        made("webp", exif=b"Exif\0\0" + bytes(9)),
    ],
)
def test_picture_has_the_size_that_the_library_finds(data: bytes) -> None:
    assert size_of(io.BytesIO(data)) == Image.open(io.BytesIO(data)).size == (301, 72)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_picture_of_several_frames_is_an_animation(kind: str) -> None:
    with pytest.raises(IsAnimation):
        size_of(io.BytesIO(animation(kind)))


class Counted(io.BytesIO):
    calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls += 1
        return super().read(size)


@pytest.mark.parametrize(
    "data",
    [
        PNG + IHDR + chunk(b"prVt") * 100_000 + chunk(b"IDAT"),
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 100_000 + frame(8, 8) + SCAN,
        b"\xff\xd8" + b"\xff" * 100_000,
        b"\xff\xd8" + frame(8, 8) + b"\xff\xe1\x00\x02" * 100_000,
    ],
)
def test_picture_of_countless_segments_is_refused_after_a_thousand(data: bytes) -> None:
    file = Counted(data)
    with pytest.raises(NotAPicture):
        size_of(file)
    assert file.calls < 5000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(30),
        PNG,
        PNG + IHDR,
        PNG + chunk(b"IDAT"),
        PNG + IHDR + IHDR + chunk(b"IDAT"),
        PNG + chunk(b"IHDR", bytes(13)) + chunk(b"IDAT"),
        PNG + struct.pack(">I", 2**32 - 1) + b"IHDR",
        b"\xff\xd8",
        b"\xff\xd8" + SCAN,
        b"\xff\xd8" + frame(8, 8) + b"\xff\xd9",
        b"\xff\xd8" + frame(8, 8) + frame(9000, 9000) + SCAN,
        b"\xff\xd8\xff\xe1\x00\x01" + frame(8, 8) + SCAN,
        b"RIFF\0\0\0\0WEBPVP8L",
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(14),
    ],
)
def test_picture_that_is_invalid_is_refused(data: bytes) -> None:
    with pytest.raises(NotAPicture):
        size_of(io.BytesIO(data))
    for cut in range(len(data)):
        with pytest.raises(NotAPicture):
            size_of(io.BytesIO(data[:cut]))
