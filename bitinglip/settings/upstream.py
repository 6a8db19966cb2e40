"""Declares the settings under ``models.<name>.upstream``: another server that answers for a
model."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bitinglip.settings.addresses import PublicUrl
from bitinglip.settings.sections import Section


class Upstream(Section):
    """Names the servers with an OpenAI-compatible API that answer a model's requests."""

    url: list[PublicUrl] = Field(
        [],
        max_length=64,
        description="addresses of OpenAI-compatible servers, such as http://10.0.0.5:8000/v1; "
        "requests take turns among those that answer, or stay with one (balancing: sticky)",
    )
    model: str | None = Field(
        None, description="name of the model on those servers; null is its name here"
    )
    kind: Literal["text", "vision", "embedding", "rerank", "transcription", "speech", "image"] = (
        Field(
            "text",
            description="what the model on those servers does: text, vision (texts about pictures, "
            "too), embedding, rerank, transcription, speech or image",
        )
    )
    key_file: str | None = Field(
        None, description="file that holds the API key for those servers; null sends none"
    )
    connect_timeout: Annotated[float, Field(gt=0, le=600)] = Field(
        30, description="maximum seconds that connecting to a server may take"
    )
    read_timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(
        600, description="maximum seconds of silence of a server that answers"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_url(cls, given: Any) -> Any:
        """Take one address in place of a list, or of the whole section."""
        if isinstance(given, str):
            return {"url": [given]}
        if isinstance(given, dict) and isinstance(given.get("url"), str):
            return {**given, "url": [given["url"]]}
        return given

    @model_validator(mode="after")
    def _has_url(self) -> Self:
        if not self.url and (self.model or self.key_file or self.kind != "text"):
            raise ValueError("url is missing")
        return self
