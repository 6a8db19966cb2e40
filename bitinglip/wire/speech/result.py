"""These functions describe speech and its usage in an InferenceResponse."""

from typing import Any

from bitinglip.results.files import PREFIX
from bitinglip.scheduling.job import Job
from workers import protocol


def speech_result(
    job: Job, work: protocol.SpeechJob, spoken: protocol.SpeechDone
) -> dict[str, Any]:
    """Describe the audio; ``results.files`` puts in its bytes."""
    name = protocol.audio_file_name(job.id, spoken.format)
    place = {"url": PREFIX + name} if job.output == "url" else {"audio": None, "file": name}
    return {
        **place,
        "format": spoken.format,
        "sample_rate": spoken.sample_rate,
        "duration": round(spoken.duration, 6),
        "sentences": spoken.sentences,
        "voice": spoken.voice,
        "seed": work.seed,
    }


def speech_usage(
    work: protocol.SpeechJob, final: protocol.SpeechDone | protocol.Cancelled
) -> dict[str, Any]:
    """Count what is charged: seconds of audio."""
    seconds = final.duration if isinstance(final, protocol.SpeechDone) else 0.0
    return {"characters": len(work.text), "audio_seconds": round(seconds, 6)}
