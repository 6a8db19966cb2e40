"""Declares the settings of the response cache."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bitinglip.settings.sections import Bytes, Section, span_in_seconds


class Cache(Section):
    responses: bool = Field(
        False,
        description="answer repeated requests from memory where the answer cannot differ: text and "
        "transcription at temperature 0, embeddings, and text, images and speech with a seed of "
        "the client",
    )
    scope: Literal["key", "tier", "all"] = Field(
        "key",
        description="who shares cached answers: each API key alone, the keys of a tier, or all; "
        "keys that share can tell by an answer's speed that another has asked the same",
    )
    ttl: Annotated[float, Field(gt=0), BeforeValidator(span_in_seconds)] = Field(
        3600, description="how long an answer is kept: seconds, or a span such as 30m"
    )
    max_bytes: Bytes = Field(268_435_456, description="maximum bytes of all cached answers")
    max_bytes_per_key: Bytes | None = Field(
        None, description="maximum bytes of one key's cached answers; null is half of max_bytes"
    )
