"""The kinds of inference, a row each: what the gateway has to know of a kind beside its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitinglip.access.scopes import Scope
from bitinglip.scheduling.job import ImageJob, SpeechJob, TextJob, TranscriptionJob
from bitinglip.wire.body import Body
from bitinglip.wire.image.job import SIDE, STEPS
from bitinglip.wire.image.native import ImageGenerationRequest
from bitinglip.wire.speech.native import SpeechRequest
from bitinglip.wire.text.native import DEFAULTS, TextGenerationRequest
from bitinglip.wire.transcription.native import TranscriptionFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of inference, as clients meet it."""

    scope: Scope  #: what a key needs for its requests and tasks
    api_type: str  #: the design's word for its models: text, image or audio
    purpose: str  #: completes "a model for ..."
    request: type[Body]  #: the native request
    inputs: frozenset[str] = frozenset()  #: fields of the request that are no parameters
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  #: that the request's schema leaves open


#: by the ``kind`` of jobs and manifests
KINDS: Mapping[str, Kind] = {
    TextJob.kind: Kind(
        scope=Scope.TEXT,
        api_type="text",
        purpose="text",
        request=TextGenerationRequest,
        inputs=frozenset({"prompt", "messages"}),
        defaults={
            "max_tokens": DEFAULTS.max_tokens,
            "temperature": DEFAULTS.temperature,
            "top_p": DEFAULTS.top_p,
        },
    ),
    ImageJob.kind: Kind(
        scope=Scope.IMAGE,
        api_type="image",
        purpose="images",
        request=ImageGenerationRequest,
        inputs=frozenset({"prompt"}),
        defaults={"width": SIDE, "height": SIDE, "steps": STEPS, "n": 1},
    ),
    SpeechJob.kind: Kind(
        scope=Scope.AUDIO,
        api_type="audio",
        purpose="speech",
        request=SpeechRequest,
        inputs=frozenset({"text"}),
    ),
    TranscriptionJob.kind: Kind(
        scope=Scope.AUDIO,
        api_type="audio",
        purpose="transcription",
        request=TranscriptionFields,
    ),
}
