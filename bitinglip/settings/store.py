"""Declares the settings of the store of models."""

from pydantic import Field

from bitinglip.settings.sections import Bytes, Kept, Section


class Store(Section):
    max_bytes: Bytes | None = Field(
        None,
        description="maximum bytes of models on the disk; beyond it the server removes those that "
        "were not used for longest, checked once an hour: none that is loaded, preloaded or "
        "pinned; null never removes a model",
    )
    partials_kept: Kept = Field(
        1_209_600,
        description="how long an interrupted download can be resumed, and files are kept that no "
        "model has: seconds, or a span such as 14d",
    )
