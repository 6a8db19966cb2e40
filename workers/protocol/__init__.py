"""Declares all messages between the gateway and a worker. Imports neither side."""

import msgspec

from workers.protocol.events import (
    Activity,
    AudioDelta,
    Broken,
    Cancelled,
    Confined,
    CopyProgress,
    EmbeddingDone,
    Failed,
    Heartbeat,
    ImageDone,
    ImageFile,
    Imported,
    LoadFailed,
    LoadProgress,
    Progress,
    Ready,
    Segment,
    SegmentDelta,
    SpeechDone,
    Started,
    TranscriptionDone,
    Word,
    Working,
)
from workers.protocol.files import (
    SOFTWARE,
    SOUND_LABEL,
    AudioFormat,
    ImageFormat,
    audio_file_name,
    image_file_name,
)
from workers.protocol.jobs import (
    EmbeddingJob,
    ImageJob,
    Lora,
    SpeechJob,
    TranscriptionJob,
)
from workers.protocol.load import (
    MOST_DRAFTS,
    MOST_LORA_RANK,
    MOST_LORAS,
    Attention,
    CacheFormat,
    Confinement,
    ConfineMode,
    DeviceKind,
    FakeOptions,
    Graphs,
    ImageOptions,
    Import,
    Load,
    Overlap,
    Quantization,
    ResponseFormatName,
    SpeculationKind,
    SpeechOptions,
    TextOptions,
)
from workers.protocol.marks import Ends, OfJob, Succeeds
from workers.protocol.text import (
    ChatMessage,
    FinishReason,
    Grammar,
    GrammarKind,
    Picture,
    Prompt,
    Sampling,
    TextChoice,
    TextDelta,
    TextDone,
    TextJob,
    TextLora,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
)

__all__ = [
    "MOST_DRAFTS",
    "MOST_LORAS",
    "MOST_LORA_RANK",
    "SOFTWARE",
    "SOUND_LABEL",
    "Activity",
    "Attention",
    "AudioDelta",
    "AudioFormat",
    "Broken",
    "CacheFormat",
    "Cancel",
    "Cancelled",
    "ChatMessage",
    "Command",
    "ConfineMode",
    "Confined",
    "Confinement",
    "CopyProgress",
    "DeviceKind",
    "EmbeddingDone",
    "EmbeddingJob",
    "Ends",
    "Event",
    "Failed",
    "FakeOptions",
    "Final",
    "FinishReason",
    "Grammar",
    "GrammarKind",
    "Graphs",
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
    "OfJob",
    "Overlap",
    "Picture",
    "Progress",
    "Prompt",
    "Quantization",
    "Ready",
    "ResponseFormatName",
    "Sampling",
    "Segment",
    "SegmentDelta",
    "SpeculationKind",
    "SpeechDone",
    "SpeechJob",
    "SpeechOptions",
    "Started",
    "Stop",
    "Succeeds",
    "Success",
    "TextChoice",
    "TextDelta",
    "TextDone",
    "TextJob",
    "TextLora",
    "TextOptions",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TranscriptionDone",
    "TranscriptionJob",
    "Word",
    "WorkerEvent",
    "Working",
    "audio_file_name",
    "image_file_name",
]


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    id: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Leave the loop, close the engine, exit with 0."""


Job = TextJob | ImageJob | SpeechJob | TranscriptionJob | EmbeddingJob
Command = Import | Load | Job | Cancel | Stop

Success = TextDone | ImageDone | SpeechDone | TranscriptionDone | EmbeddingDone
Final = Success | Failed | Cancelled
JobEvent = Started | TextDelta | Progress | AudioDelta | SegmentDelta | Final
WorkerEvent = (
    Imported | CopyProgress | LoadProgress | Ready | LoadFailed | Heartbeat | Working | Broken
)
Event = JobEvent | WorkerEvent
