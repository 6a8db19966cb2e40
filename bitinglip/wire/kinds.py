"""Each kind of inference has a row, a result and a usage here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from bitinglip.access.scopes import Scope
from bitinglip.scheduling.job import Job, kind_of
from bitinglip.wire.body import Body
from bitinglip.wire.embedding.native import EmbeddingRequest
from bitinglip.wire.embedding.result import embedding_result, embedding_usage
from bitinglip.wire.image.job import SIDE, STEPS
from bitinglip.wire.image.native import ImageGenerationRequest
from bitinglip.wire.image.result import image_result, image_usage
from bitinglip.wire.speech.native import SpeechRequest
from bitinglip.wire.speech.result import speech_result, speech_usage
from bitinglip.wire.text.native import DEFAULTS, TextGenerationRequest
from bitinglip.wire.text.result import text_result, text_usage
from bitinglip.wire.transcription.native import TranscriptionFields
from bitinglip.wire.transcription.result import transcription_result, transcription_usage
from workers import protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Describes a kind of inference as clients know it."""

    scope: Scope  #: what a key needs for its requests and tasks
    api_type: str  #: the design's word for its models: text, image, audio or embedding
    purpose: str  #: completes "a model for ..."
    request: type[Body]  #: the native request
    modalities: tuple[str, str]  #: what its models read and make, in the words of OpenRouter's list
    inputs: frozenset[str] = frozenset()  #: fields of the request that are no parameters
    #: of parameters that the request's schema leaves open
    defaults: Mapping[str, Any] = field(default_factory=dict)


#: by the ``kind`` of jobs and manifests
KINDS: Mapping[str, Kind] = {
    kind_of(protocol.TextJob): Kind(
        scope=Scope.TEXT,
        api_type="text",
        purpose="text",
        modalities=("text", "text"),
        request=TextGenerationRequest,
        inputs=frozenset({"prompt", "messages"}),
        defaults={
            "max_tokens": DEFAULTS.max_tokens,
            "temperature": DEFAULTS.temperature,
            "top_p": DEFAULTS.top_p,
        },
    ),
    kind_of(protocol.ImageJob): Kind(
        scope=Scope.IMAGE,
        api_type="image",
        purpose="images",
        modalities=("text", "image"),
        request=ImageGenerationRequest,
        inputs=frozenset({"prompt"}),
        defaults={"width": SIDE, "height": SIDE, "steps": STEPS, "n": 1},
    ),
    kind_of(protocol.SpeechJob): Kind(
        scope=Scope.AUDIO,
        api_type="audio",
        purpose="speech",
        modalities=("text", "audio"),
        request=SpeechRequest,
        inputs=frozenset({"text"}),
    ),
    kind_of(protocol.TranscriptionJob): Kind(
        scope=Scope.AUDIO,
        api_type="audio",
        purpose="transcription",
        modalities=("audio", "text"),
        request=TranscriptionFields,
    ),
    kind_of(protocol.EmbeddingJob): Kind(
        scope=Scope.TEXT,
        api_type="embedding",
        purpose="embeddings",
        modalities=("text", "embeddings"),
        request=EmbeddingRequest,
        inputs=frozenset({"input"}),
    ),
}


def result_of(job: Job, done: protocol.Success) -> dict[str, Any]:
    """Make the ``result`` of an InferenceResponse; each kind has its own final event."""
    work = job.work
    match work:
        case protocol.TextJob():
            assert isinstance(done, protocol.TextDone)
            return text_result(work, done)
        case protocol.ImageJob():
            assert isinstance(done, protocol.ImageDone)
            return image_result(job, done)
        case protocol.SpeechJob():
            assert isinstance(done, protocol.SpeechDone)
            return speech_result(job, work, done)
        case protocol.TranscriptionJob():
            assert isinstance(done, protocol.TranscriptionDone)
            return transcription_result(done)
        case protocol.EmbeddingJob():
            assert isinstance(done, protocol.EmbeddingDone)
            return embedding_result(work, done)
        case _:
            assert_never(work)


def usage_of(job: Job, final: protocol.Final | None) -> dict[str, Any] | None:
    """Make the ``usage`` of an InferenceResponse; None before the end, and for a failed job."""
    if final is None or isinstance(final, protocol.Failed):
        return None
    work = job.work
    match work:
        case protocol.TextJob():
            assert isinstance(final, protocol.TextDone | protocol.Cancelled)
            return text_usage(final)
        case protocol.ImageJob():
            assert isinstance(final, protocol.ImageDone | protocol.Cancelled)
            return image_usage(job, work, final)
        case protocol.SpeechJob():
            assert isinstance(final, protocol.SpeechDone | protocol.Cancelled)
            return speech_usage(work, final)
        case protocol.TranscriptionJob():
            assert isinstance(final, protocol.TranscriptionDone | protocol.Cancelled)
            return transcription_usage(final)
        case protocol.EmbeddingJob():
            assert isinstance(final, protocol.EmbeddingDone | protocol.Cancelled)
            return embedding_usage(final)
        case _:
            assert_never(work)
