"""These functions describe images and their usage in an InferenceResponse."""

from typing import Any

from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import cost_done
from bitinglip.work.image import megapixels
from workers import protocol


def image_result(job: Job, done: protocol.ImageDone) -> dict[str, Any]:
    """Describe the images; ``results.files`` puts in their bytes."""
    result: dict[str, Any] = {
        "images": [_image(job, index, each) for index, each in enumerate(done.images)],
        "steps": done.steps,
        "scheduler": done.scheduler,
        "guidance_scale": done.guidance_scale,
    }
    if done.memory_fallbacks:
        result["measures"] = list(done.memory_fallbacks)
    return result


def image_usage(
    job: Job, work: protocol.ImageJob, final: protocol.ImageDone | protocol.Cancelled
) -> dict[str, Any]:
    """Count what is charged: megapixels times steps."""
    made = len(final.images) if isinstance(final, protocol.ImageDone) else 0
    return {
        "images": made,
        "megapixels": round(megapixels(work), 6) if made else 0.0,
        "megapixel_steps": round(cost_done(job, final), 6),
    }


def _image(job: Job, index: int, picture: protocol.ImageFile) -> dict[str, Any]:
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
