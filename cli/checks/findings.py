"""Hold what one check of ``doctor`` found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    detail: str
    advice: str = ""  #: what to do about it
