"""Declares the limits of requests: by tier of the caller's key, and by kind of request."""

from typing import Annotated

from pydantic import Field

from bitinglip.settings.guard import TierGuard
from bitinglip.settings.sections import Section

_TIER_PRIORITY = (
    "scheduling priority: higher is served first; under load lower tiers are limited first"
)
_TIER_WEIGHT = "share of a key among keys of the same priority"
_PER_MINUTE = "inference requests per minute and key; null sets no limit"
_PER_HOUR = "inference requests per hour and key; null sets no limit"
_AT_ONCE = (
    "inference requests and WebSockets of a key at once; more are refused; null sets no limit"
)
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class TierImage(Section):
    """Limits a key's image requests."""

    max_megapixels: Annotated[float, Field(gt=0)] | None = Field(
        None, description="maximum megapixels per request, all images together; null sets no limit"
    )


class TierSpeech(Section):
    """Limits a key's speech requests."""

    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum characters per request; null uses limits.speech.max_characters"
    )


class TierTranscription(Section):
    """Limits a key's transcriptions."""

    max_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="maximum seconds of audio; null uses limits.transcription.max_seconds"
    )
    max_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum bytes of an audio file; null uses server.max_upload_bytes"
    )


_QUOTA = "per key in a calendar day or month (UTC); null sets no limit"
Amount = Annotated[float, Field(ge=0, le=1e12)]
WholeAmount = Annotated[int, Field(ge=0, le=10**12)]


class Quotas(Section):
    """Bounds what a key may use in a day or a month of the calendar."""

    requests: WholeAmount | None = Field(None, description=f"inference requests {_QUOTA}")
    tokens: WholeAmount | None = Field(None, description=f"tokens, prompts included, {_QUOTA}")
    megapixels: Amount | None = Field(None, description=f"megapixels of images made {_QUOTA}")
    audio_seconds: Amount | None = Field(
        None, description=f"seconds of audio, made or transcribed, {_QUOTA}"
    )
    gpu_seconds: Amount | None = Field(
        None, description=f"seconds of work on accelerators {_QUOTA}"
    )


class Tier(Section):
    """Grants the keys of a tier their place in the queues, and limits by kind of request."""

    requests_per_minute: Count | None = Field(10, description=_PER_MINUTE)
    requests_per_hour: Count | None = Field(100, description=_PER_HOUR)
    tokens_per_minute: Count | None = Field(
        None,
        description="tokens per minute and key, prompts included: a request takes the most that it "
        "may use and gives the rest back at its end; null sets no limit",
    )
    concurrent_requests: Count | None = Field(2, description=_AT_ONCE)
    burst: Count | None = Field(
        None,
        description="requests of requests_per_minute that may come at once; null is all of them",
    )
    priority: Annotated[int, Field(ge=0, le=100)] = Field(0, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(1, description=_TIER_WEIGHT)
    max_queue: Annotated[int, Field(ge=0)] | None = Field(
        None, description="maximum queued requests per key; null sets no limit"
    )
    daily: Quotas = Quotas()
    monthly: Quotas = Quotas()
    image: TierImage = TierImage()
    speech: TierSpeech = TierSpeech()
    transcription: TierTranscription = TierTranscription()
    guard: TierGuard = TierGuard()


class Pro(Tier):
    requests_per_minute: Count | None = Field(100, description=_PER_MINUTE)
    requests_per_hour: Count | None = Field(1000, description=_PER_HOUR)
    concurrent_requests: Count | None = Field(10, description=_AT_ONCE)
    priority: Annotated[int, Field(ge=0, le=100)] = Field(1, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(4, description=_TIER_WEIGHT)


class Enterprise(Tier):
    requests_per_minute: Count | None = Field(1000, description=_PER_MINUTE)
    requests_per_hour: Count | None = Field(10000, description=_PER_HOUR)
    concurrent_requests: Count | None = Field(50, description=_AT_ONCE)
    priority: Annotated[int, Field(ge=0, le=100)] = Field(2, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(16, description=_TIER_WEIGHT)


class Operator(Tier):
    requests_per_minute: Count | None = Field(None, description=_PER_MINUTE)
    requests_per_hour: Count | None = Field(None, description=_PER_HOUR)
    concurrent_requests: Count | None = Field(None, description=_AT_ONCE)
    priority: Annotated[int, Field(ge=0, le=100)] = Field(3, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(16, description=_TIER_WEIGHT)


class Tiers(Section):
    free: Tier = Tier()
    pro: Pro = Pro()
    enterprise: Enterprise = Enterprise()
    operator: Operator = Operator()


class ImageLimits(Section):
    """Bounds what one request for images may ask for; sides in pixels."""

    min_side: Annotated[int, Field(ge=8)] = Field(
        64, description="minimum width and height of an image in pixels"
    )
    max_side: Annotated[int, Field(ge=8)] = Field(
        2048, description="maximum width and height of an image in pixels"
    )
    max_steps: Annotated[int, Field(ge=1)] = Field(
        150, description="maximum denoising steps per image"
    )
    max_images: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="maximum images per request"
    )
    max_guidance: Annotated[float, Field(ge=0)] = Field(50, description="maximum guidance_scale")


class PictureLimits(Section):
    """Bounds the pictures in the messages of one request for text."""

    max_count: Annotated[int, Field(ge=0, le=256)] = Field(
        16, description="maximum pictures in the messages of a request; 0 allows none"
    )
    max_megapixels: Annotated[float, Field(gt=0, le=64)] = Field(
        24, description="maximum megapixels of all pictures in the messages of a request"
    )


class SpeechLimits(Section):
    max_characters: Annotated[int, Field(ge=1)] = Field(
        4096, description="maximum characters per speech request"
    )


class EmbeddingLimits(Section):
    max_texts: Annotated[int, Field(ge=1, le=100_000)] = Field(
        2048, description="maximum texts per embedding request"
    )


class TranscriptionLimits(Section):
    max_seconds: Annotated[float, Field(gt=0)] = Field(
        14_400, description="maximum seconds of audio per request"
    )
    max_channels: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="maximum channels of an audio file (it is mixed down to mono)"
    )
    max_sample_rate: Annotated[int, Field(ge=8000)] = Field(
        768_000, description="maximum sample rate of an audio file in Hz"
    )


class Endpoint(Section):
    """Narrows one route for each key."""

    requests_per_minute: Count | None = Field(
        None, description="requests per minute and key to this route; null sets no further limit"
    )
    requests_per_hour: Count | None = Field(
        None, description="requests per hour and key to this route; null sets no further limit"
    )


class Limits(Section):
    tiers: Tiers = Tiers()
    endpoints: dict[str, Endpoint] = Field(
        {},
        description="further limits of single routes, by path as in /docs; not for tier operator",
        examples=["/v1/chat/completions"],
    )
    other_requests_per_minute: Count | None = Field(
        3000,
        description="requests per minute and key that run no model (lists, tasks, files), for all "
        "tiers but operator; null sets no limit",
    )
    failed_logins_per_minute: Count | None = Field(
        100,
        description="wrong or expired credentials per minute and client address; further ones get "
        "429, valid ones always pass; null sets no limit",
    )
    images: ImageLimits = ImageLimits()
    pictures: PictureLimits = PictureLimits()
    speech: SpeechLimits = SpeechLimits()
    transcription: TranscriptionLimits = TranscriptionLimits()
    embedding: EmbeddingLimits = EmbeddingLimits()
