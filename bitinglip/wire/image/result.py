"""The result and the usage of images in an InferenceResponse."""

from typing import Any

from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import ImageJob
from workers import protocol


def image_result(job: ImageJob, done: protocol.ImageDone) -> dict[str, Any]:
    """``result`` of an InferenceResponse; bytes are filled in by ``results.files``."""
    result: dict[str, Any] = {
        "images": [_image(job, index, each) for index, each in enumerate(done.images)],
        "steps": done.steps,
        "scheduler": done.scheduler,
        "guidance_scale": done.guidance_scale,
    }
    if done.memory_fallbacks:
        result["measures"] = list(done.memory_fallbacks)
    return result


def image_usage(job: ImageJob, final: protocol.ImageDone | protocol.Cancelled) -> dict[str, Any]:
    """What is charged: megapixels times steps."""
    made = len(final.images) if isinstance(final, protocol.ImageDone) else 0
    return {
        "images": made,
        "megapixels": round(job.megapixels, 6) if made else 0.0,
        "megapixel_steps": round(job.work_done(final), 6),
    }


def _image(job: ImageJob, index: int, picture: protocol.ImageFile) -> dict[str, Any]:
    name = protocol.image_file_name(job.id, index, picture.format)
    place = {"url": PREFIX + name} if job.output == "url" else {"b64": None, "file": name}
    facts: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "seed": picture.seed,
        "format": picture.format,
    }
    if picture.filtered:
        facts["filtered"] = True
    return place | facts
