"""Names the files that jobs write; both sides build the names without being told."""

from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
AudioFormat = Literal["wav", "flac", "ogg", "mp3", "aac"]
#: what is written into sounds, so that they are known as a machine's
SOUND_LABEL, SOFTWARE = "Made by a machine (text to speech)", "BitingLip"


def image_file_name(job_id: str, index: int, image_format: str) -> str:
    """Name the file of one image of a job; both sides know it without being told."""
    return f"{job_id}-{index}.{image_format}"


def audio_file_name(job_id: str, audio_format: str) -> str:
    return f"{job_id}-0.{audio_format}"
