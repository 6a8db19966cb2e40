"""Holds programs that Redis runs as one step, between any two of others."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Script:
    """Is a program in Lua. All keys that a call names have the same {tag}, so the same node."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)

    @classmethod
    def beside(cls, module: str, name: str) -> Self:
        """Read the script of this name that lies in the folder of a module, by its ``__file__``."""
        return cls(Path(module).with_name(name).read_text(encoding="utf-8"))
