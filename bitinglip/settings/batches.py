"""Declares the settings of batches, and of the files that clients keep for them."""

from typing import Annotated

from pydantic import Field

from bitinglip.settings.sections import Bytes, Kept, Section

Number = Annotated[int, Field(ge=1, le=1_000_000)]


class Batches(Section):
    retention: Kept = Field(
        2_592_000,
        description="how long files of /v1/files and ended batches are kept: seconds, or a span "
        "such as 30d",
    )
    max_bytes: Bytes = Field(
        10_737_418_240,
        description="maximum bytes of files of /v1/files, results of batches among them; further "
        "uploads are refused; one key may hold half",
    )
    max_lines: Number = Field(50_000, description="maximum requests in a batch")
    max_open: Number = Field(100, description="maximum unfinished batches of all keys together")
    max_open_per_key: Number = Field(10, description="maximum unfinished batches of a key")
    lines_at_once: Number = Field(
        16, description="maximum requests of all batches together that wait or run at the same time"
    )
    lines_at_once_per_batch: Number = Field(
        4, description="maximum requests of one batch that wait or run at the same time"
    )
