"""What a caller's key, the model's settings and the server give a request of some kind."""

from starlette.requests import Request

from bitinglip.api.auth import caller_of
from bitinglip.api.services import services_of
from bitinglip.scheduling.queue.priority import RequestPriority, priority_of, tier_of
from bitinglip.wire.image.job import ImageTerms
from bitinglip.wire.speech.job import SpeechTerms
from bitinglip.wire.transcription.job import TranscriptionTerms


def image_terms(request: Request, model: str, priority: RequestPriority = "normal") -> ImageTerms:
    services, tier = services_of(request), caller_of(request).tier
    settings = services.settings
    return ImageTerms(
        own=settings.model(model).image,
        limits=settings.limits.images,
        tier=tier_of(settings.limits.tiers, tier),
        key_id=caller_of(request).key_id,
        timeout=settings.server.request_timeout,
        priority=priority_of(settings.limits.tiers, tier, priority),
        folder=services.files.folder,
    )


def speech_terms(request: Request, model: str, priority: RequestPriority = "normal") -> SpeechTerms:
    services, caller = services_of(request), caller_of(request)
    settings = services.settings
    return SpeechTerms(
        own=settings.model(model).speech,
        limits=settings.limits.speech,
        tier=tier_of(settings.limits.tiers, caller.tier),
        key_id=caller.key_id,
        timeout=settings.server.request_timeout,
        priority=priority_of(settings.limits.tiers, caller.tier, priority),
        folder=services.files.folder,
    )


def transcription_terms(
    request: Request, priority: RequestPriority = "normal"
) -> TranscriptionTerms:
    services, caller = services_of(request), caller_of(request)
    settings = services.settings
    return TranscriptionTerms(
        limits=settings.limits.transcription,
        tier=tier_of(settings.limits.tiers, caller.tier),
        key_id=caller.key_id,
        timeout=settings.server.request_timeout,
        priority=priority_of(settings.limits.tiers, caller.tier, priority),
        folder=services.files.folder,
    )
