"""Declares the settings of the audit log."""

from typing import Annotated

from pydantic import Field

from bitinglip.settings.sections import Section


class Audit(Section):
    retention: Annotated[float, Field(ge=1, le=36_500)] = Field(
        365, description="days that an entry of the audit log is kept"
    )
    max_entries: Annotated[int, Field(ge=1000)] = Field(
        1_000_000, description="maximum entries of the audit log; beyond it the oldest are deleted"
    )
