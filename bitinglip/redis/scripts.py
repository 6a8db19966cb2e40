"""Holds programs that Redis runs atomically."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

#: those that are loaded with each connection, by digest: one that Redis does not know is run later
#: than what was called after it
KNOWN: "dict[str, Script]" = {}


@dataclass(frozen=True)
class Script:
    """Is a program in Lua. All keys that a call names have the same {tag}, so the same node."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)
        KNOWN[digest] = self

    @classmethod
    def beside(cls, module: str, name: str) -> Self:
        """Read the script of this name in the folder of a module, by its ``__file__``."""
        return cls(Path(module).with_name(name).read_text(encoding="utf-8"))
