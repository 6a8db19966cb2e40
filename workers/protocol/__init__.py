"""Every message between the gateway and a worker. Imports neither side; see workers.framing."""

import msgspec

from workers.protocol.events import (
    AudioDelta,
    Cancelled,
    Event,
    Failed,
    Final,
    Heartbeat,
    ImageDone,
    ImageFile,
    Imported,
    JobEvent,
    LoadFailed,
    LoadProgress,
    Progress,
    Ready,
    Segment,
    SegmentDelta,
    SpeechDone,
    Started,
    Success,
    TextDelta,
    TextDone,
    TokenLogprob,
    TranscriptionDone,
    Word,
    WorkerEvent,
)
from workers.protocol.files import AudioFormat, ImageFormat, audio_file_name, image_file_name
from workers.protocol.jobs import (
    ChatMessage,
    ImageJob,
    Job,
    Lora,
    Sampling,
    SpeechJob,
    TextJob,
    TranscriptionJob,
)
from workers.protocol.load import (
    DeviceKind,
    FakeOptions,
    ImageOptions,
    Import,
    Load,
    SpeechOptions,
)

__all__ = [
    "AudioDelta",
    "AudioFormat",
    "Cancel",
    "Cancelled",
    "ChatMessage",
    "Command",
    "DeviceKind",
    "Event",
    "Failed",
    "FakeOptions",
    "Final",
    "Heartbeat",
    "ImageDone",
    "ImageFile",
    "ImageFormat",
    "ImageJob",
    "ImageOptions",
    "Import",
    "Imported",
    "Job",
    "JobEvent",
    "Load",
    "LoadFailed",
    "LoadProgress",
    "Lora",
    "Progress",
    "Ready",
    "Sampling",
    "Segment",
    "SegmentDelta",
    "SpeechDone",
    "SpeechJob",
    "SpeechOptions",
    "Started",
    "Stop",
    "Success",
    "TextDelta",
    "TextDone",
    "TextJob",
    "TokenLogprob",
    "TranscriptionDone",
    "TranscriptionJob",
    "Word",
    "WorkerEvent",
    "audio_file_name",
    "image_file_name",
]


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    id: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Leave the loop, close the engine, exit with 0."""


Command = Import | Load | TextJob | ImageJob | SpeechJob | TranscriptionJob | Cancel | Stop
