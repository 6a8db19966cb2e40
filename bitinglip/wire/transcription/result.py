"""These functions describe a transcription and its usage in an InferenceResponse."""

from typing import Any

import msgspec

from workers import protocol


def transcription_result(done: protocol.TranscriptionDone) -> dict[str, Any]:
    """Describe the transcription and its segments."""
    return {
        "text": done.text,
        "language": done.language,
        "duration": round(done.duration, 3),
        "segments": [segment_info(number, each) for number, each in enumerate(done.segments)],
    }


def segment_info(number: int, segment: protocol.Segment) -> dict[str, Any]:
    return {"id": number, **msgspec.to_builtins(segment)}


def transcription_usage(final: protocol.TranscriptionDone | protocol.Cancelled) -> dict[str, Any]:
    """Count what is charged: seconds of audio."""
    seconds = final.duration if isinstance(final, protocol.TranscriptionDone) else 0.0
    return {"audio_seconds": round(seconds, 6)}
