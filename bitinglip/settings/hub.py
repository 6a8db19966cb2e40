"""Declares the settings of the hub that models come from, and of downloads."""

from pydantic import Field

from bitinglip.settings.addresses import PublicUrl
from bitinglip.settings.sections import Kept, Section


class Hub(Section):
    endpoint: str | None = Field(
        None, description="URL of a Hugging Face mirror; null uses the hub itself"
    )
    token_file: str | None = Field(
        None, description="file that holds the Hugging Face token; null uses HF_TOKEN"
    )
    mirrors: list[PublicUrl] = Field(
        [],
        max_length=8,
        description="URLs that are asked in turn where the hub does not deliver; never with the "
        "token",
    )
    parallel: int = Field(
        4, ge=1, le=16, description="maximum files of a model that are downloaded at the same time"
    )
    offline: bool = Field(False, description="never contact the hub")
    max_downloads: int = Field(
        2, ge=1, le=16, description="maximum models that the server downloads at the same time"
    )
    bytes_per_second: int | None = Field(
        None,
        ge=1024,
        description="bandwidth of all downloads of the server together; null is no limit",
    )
    min_bytes_per_second: int = Field(
        1024,
        ge=0,
        le=1 << 30,
        description="speed of a connection to the hub below which, over 30 seconds, it counts as "
        "stalled and is opened again, or another address is asked; 0: only silence counts",
    )
    max_queued: int = Field(
        100, ge=1, le=10_000, description="maximum unfinished downloads of all keys together"
    )
    max_queued_per_key: int = Field(
        50, ge=1, le=10_000, description="maximum unfinished downloads of a key"
    )
    max_downloads_per_key: int | None = Field(
        None,
        ge=1,
        le=16,
        description="maximum models that the server downloads at the same time for a key; null is "
        "as many as for all; keys whose downloads have the same priority take turns",
    )
    retry_for: Kept = Field(
        86_400,
        description="how long a download waits for a hub that cannot be reached or is busy, and "
        "asks it again after 15 seconds to 5 minutes: seconds, or a span such as 1h",
    )
    download_retention: Kept = Field(
        2_592_000,
        description="how long ended downloads are listed: seconds, or a span such as 30d",
    )
