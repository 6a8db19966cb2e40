"""Pictures from other servers: what they are asked for, and what is taken for a picture."""

import io
import json
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.images import edit_form, image_done, image_request, most_bytes
from workers.engines.base import Refused
from workers.protocol import ImageJob, Lora


def job(folder: Path | str = "nowhere", **more: Any) -> ImageJob:
    fields: dict[str, Any] = {"width": 64, "height": 32, "steps": 4, "seeds": (7,), **more}
    return ImageJob(id="i", prompt="a fox", folder=str(folder), **fields)


def picture(kind: str = "png", size: tuple[int, int] = (64, 32), mode: str = "RGB") -> bytes:
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("parameters", "a fox")
    Image.effect_noise(size, 50).convert(mode).save(
        buffer, kind, **({"pnginfo": info} if kind == "png" else {})
    )
    return buffer.getvalue()


def answer(*pictures: bytes) -> bytes:
    return json.dumps(
        {"data": [{"b64_json": b64encode(each).decode()} for each in pictures]}
    ).encode()


def test_image_request_asks_for_what_the_job_wants() -> None:
    path, body, _ = image_request(job(seeds=(7, 8)), "m")
    assert path == "images/generations"
    assert body == {
        "model": "m",
        "prompt": "a fox",
        "n": 2,
        "size": "64x32",
        "response_format": "b64_json",
        "seed": 7,
        "steps": 4,
    }
    given: dict[str, Any] = {
        "negative_prompt": "a cat",
        "guidance_scale": 2.5,
        "scheduler": "euler",
    }
    assert given.items() <= image_request(job(**given), "m").body.items()
    assert image_request(job(format="webp"), "m").body["output_format"] == "webp"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"mask": "path"}, "mask"),
        ({"strength": 0.5}, "strength"),
        ({"adapters": (Lora("bold"),)}, "loras"),
        ({"preview_every": 5}, "preview"),
        ({"metadata": False, "format": "jpeg"}, "metadata"),
    ],
)
def test_image_request_that_no_field_can_ask_for_is_refused_by_name(
    more: dict[str, Any], param: str
) -> None:
    with pytest.raises(Refused) as refused:
        image_request(job(**more), "m")
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", param)


def test_image_request_from_a_picture_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    gone = job(image=str(tmp_path / "gone"), strength=0.5)
    path, body, _ = image_request(gone, "m")
    assert (path, body["strength"]) == ("images/edits", 0.5)
    with pytest.raises(Refused) as refused:
        edit_form(gone, body)
    assert refused.value.code == "INFERENCE_FAILED"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_image_answer_becomes_files(tmp_path: Path, mode: str) -> None:
    first, second = picture(mode=mode), picture(mode=mode)
    done = image_done(job(tmp_path / "files", seeds=(7, 8)), answer(first, second))
    assert [each.seed for each in done.images] == [7, 8]
    assert [each.bytes for each in done.images] == [len(first), len(second)]
    assert (tmp_path / "files" / "i-1.png").read_bytes() == second
    assert sorted(each.name for each in (tmp_path / "files").iterdir()) == ["i-0.png", "i-1.png"]
    assert len(answer(first, second)) < most_bytes(job(seeds=(7, 8))) < 1 << 23


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_image_answer_in_other_formats(tmp_path: Path, kind: str) -> None:
    data = picture(kind)
    image_done(job(tmp_path, format=kind), answer(data))
    assert (tmp_path / f"i-0.{kind}").read_bytes() == data
    for bad in (data[:-1], data + b"!", picture("png")):
        with pytest.raises(BadAnswer):
            image_done(job(tmp_path, format=kind), answer(bad))


def test_image_answer_is_freed_of_what_it_tells(tmp_path: Path) -> None:
    image_done(job(tmp_path, metadata=False), answer(picture()))
    with Image.open(tmp_path / "i-0.png") as found:
        found.load()
        assert (found.size, found.info) == ((64, 32), {})


def remade(kind: bytes, data: bytes, *, of: bytes | None = None) -> bytes:
    """Return a picture with other data in a chunk, and the checksum of that."""
    whole = picture() if of is None else of
    at = whole.index(kind) - 4
    size = int.from_bytes(whole[at : at + 4])
    made = len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
    return whole[:at] + made + whole[at + size + 12 :]


def header(depth: int = 8, colours: int = 2, interlaced: int = 0, width: int = 64) -> bytes:
    sides = width.to_bytes(4) + (32).to_bytes(4)
    return sides + bytes((depth, colours, 0, 0, interlaced))


#: A chunk without data; each takes many times more memory than it has bytes.
EMPTY = bytes(4) + b"teXt" + zlib.crc32(b"teXt").to_bytes(4)
ROWS = bytes((1 + 3 * 64) * 32)


def test_image_answer_may_be_interlaced(tmp_path: Path) -> None:
    steps = ((8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0))
    passes = (*steps, (1, 2, 0, 1))
    rows = b"".join(
        bytes(1 + 3 * len(range(x, 64, dx))) * len(range(y, 32, dy)) for dx, dy, x, y in passes
    )
    data = remade(b"IDAT", zlib.compress(rows), of=remade(b"IHDR", header(interlaced=1)))
    with Image.open(io.BytesIO(data)) as found:
        found.load()
    image_done(job(tmp_path), answer(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"data": [{"b64_json": "no base64!"}]}',
        b'{"data": [{"url": "http://somewhere/x.png"}]}',
        answer(),
        answer(picture(), picture()),
        answer(b""),
        answer(b"\x89PNG\r\n\x1a\n"),
        answer(b"<svg/>" * 10),
        answer(picture(size=(32, 64))),
        answer(picture("jpeg")),
        answer(picture()[:-12]),
        answer(picture()[:-100]),
        answer(picture() + b"more"),
        answer(picture().replace(b"a fox", b"a cat")),
        answer(remade(b"IHDR", header(depth=16))),
        answer(remade(b"IHDR", header(depth=3))),
        answer(remade(b"IHDR", header(colours=5))),
        answer(remade(b"IHDR", header(interlaced=2))),
        answer(remade(b"IHDR", header(width=1 << 30))),
        answer(remade(b"IDAT", b"")),
        answer(remade(b"IDAT", b"no zlib")),
        answer(remade(b"IDAT", zlib.compress(ROWS)[:-6])),
        answer(remade(b"IDAT", zlib.compress(ROWS[1:]))),
        answer(remade(b"IDAT", zlib.compress(bytes(50_000_000)))),
        answer(picture()[:-12] + EMPTY * 40_000 + picture()[-12:]),
    ],
    ids=range(26),
)
def test_image_answer_that_is_no_picture_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadAnswer):
        image_done(job(tmp_path), data)
    assert not [*tmp_path.iterdir()]


def test_image_answer_without_room_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "i-1.png.part").mkdir()
    with pytest.raises(Refused) as refused:
        image_done(job(tmp_path, seeds=(7, 8)), answer(picture(), picture()))
    assert refused.value.code == "DISK_FULL"
    assert [each.name for each in tmp_path.iterdir()] == ["i-1.png.part"]
