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


def told(check: str, error: Exception) -> Finding:
    """Return an error as the start tells it: what is wrong, and after a semicolon what to do."""
    detail, _, advice = " ".join(str(error).split("\n")).partition("; ")
    return Finding(check, "error", detail, advice.removeprefix("run: "))
