"""Converts image jobs into requests of OpenAI's API, and its answers into the jobs' files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.form import FilePart, Form
from bitinglip.upstreams.pictures import checked_picture
from bitinglip.upstreams.request import Request, picture_kind
from workers.engines.base import Refused
from workers.protocol import ImageDone, ImageFile, ImageJob, image_file_name

#: bytes of a pixel and of all else in a picture, and of what is around all of them: at most
_PIXEL_BYTES, _PICTURE_BYTES, _ANSWER_BYTES = 5, 1 << 20, 1 << 20
_UNKNOWN = "upstream"  #: where the other server chooses the scheduler


class _Picture(msgspec.Struct):
    b64_json: bytes  #: msgspec decodes it on its way


class _Answer(msgspec.Struct):
    data: list[_Picture]


def image_request(job: ImageJob, model: str) -> Request:
    """Return the request for a job's pictures. Raises Refused for what the API has no field for."""
    unsupported = {
        "mask": job.mask is not None and job.image is None,
        "strength": job.strength is not None and job.image is None,
        "loras": bool(job.adapters),
        "preview": job.stream and job.preview_every > 0,
        # Of a PNG alone what it tells can be left out here.
        "metadata": not job.metadata and job.format != "png",
    }
    for field, asked in unsupported.items():
        if asked:
            text = f"'{field}' cannot be passed on to the server that this model stands for."
            raise Refused("UNSUPPORTED_PARAMETER", text, param=field)
    body: dict[str, Any] = {
        "model": model,
        "prompt": job.prompt,
        "n": len(job.seeds),
        "size": f"{job.width}x{job.height}",
        "response_format": "b64_json",
        # Not OpenAI's own, but BitingLip knows them.
        "seed": job.seeds[0],  # the others count up from it, here and there
        "steps": job.steps,
    }
    optional = {
        "output_format": job.format if job.format != "png" else None,
        "negative_prompt": job.negative_prompt,
        "guidance_scale": job.guidance_scale,
        "scheduler": job.scheduler,
        "strength": job.strength,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    return Request("images/generations" if job.image is None else "images/edits", body)


def edit_form(job: ImageJob, body: Mapping[str, Any]) -> Form:
    """Return the form of a request that makes pictures from one, with the fields of its body.

    It looks into files, which come as the client has sent them. Raises Refused.
    """
    files = (("image", job.image), ("mask", job.mask))
    try:
        parts = [_file_part(name, Path(path)) for name, path in files if path is not None]
    except OSError as error:
        raise Refused("INFERENCE_FAILED", "The picture of the request is gone.") from error
    return Form([(name, str(value)) for name, value in body.items()], *parts)


def _file_part(name: str, path: Path) -> FilePart:
    """Return a picture as a part of a form. Raises OSError."""
    kind = picture_kind(path)
    return FilePart(name, path, f"{name}.{kind}", f"image/{kind}")


def most_bytes(job: ImageJob) -> int:
    """Return how long the answer to a job may be: its pixels, unpacked, in base64."""
    picture = _PICTURE_BYTES + _PIXEL_BYTES * job.width * job.height
    return _ANSWER_BYTES + len(job.seeds) * picture * 4 // 3


def image_done(job: ImageJob, data: bytes | bytearray) -> ImageDone:
    """Make a job's files of an answer, which takes a while: all of them, or none.

    Raises BadAnswer, or Refused if the disk does not take them.
    """
    folder, pictures = Path(job.folder), _pictures(job, data)
    paths = [folder / image_file_name(job.id, n, job.format) for n in range(len(pictures))]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
        sizes = [_write(job, path, pictures.pop(0)) for path in paths]
        for path in paths:
            os.replace(_draft(path), path)
    except BaseException as error:
        for path in paths:
            _remove(path)
        if isinstance(error, OSError):
            raise Refused("DISK_FULL", "The images could not be written.") from error
        raise
    return ImageDone(
        id=job.id,
        images=tuple(
            ImageFile(width=job.width, height=job.height, seed=seed, format=job.format, bytes=size)
            for seed, size in zip(job.seeds, sizes, strict=True)
        ),
        steps=job.steps,
        scheduler=job.scheduler or _UNKNOWN,
        guidance_scale=job.guidance_scale,
    )


def _pictures(job: ImageJob, data: bytes | bytearray) -> list[bytes]:
    """Return the pictures in an answer, none of them checked. Raises BadAnswer."""
    try:
        found = [each.b64_json for each in msgspec.json.decode(data, type=_Answer).data]
    except (ValueError, msgspec.DecodeError) as error:
        raise BadAnswer("its answer has another form.") from error
    if len(found) != len(job.seeds):
        raise BadAnswer("its answer has not as many pictures as were asked for.")
    return found


def _write(job: ImageJob, path: Path, picture: bytes) -> int:
    """Write a picture's draft, and return its size. Raises BadAnswer or OSError."""
    checked = checked_picture(picture, job.format, (job.width, job.height), told=job.metadata)
    _draft(path).write_bytes(checked)
    return len(checked)


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _remove(path: Path) -> None:
    for each in (path, _draft(path)):
        try:
            each.unlink()
        except OSError:
            continue  # it is not there, or stays for the next cleaning
