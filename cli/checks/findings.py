"""Hold what one check of ``doctor`` found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    check: str
    level: Literal["ok", "warning", "error"]
    detail: str
    advice: str = ""  #: what to do about it
