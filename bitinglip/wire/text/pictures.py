"""Messages hold pictures between their texts: as ``data:`` URLs, which nothing has to be fetched
for."""

from collections.abc import Iterable
from typing import Annotated, Protocol

from pydantic import AfterValidator, BaseModel
from pydantic_core import PydanticCustomError

from bitinglip.wire.body import Body
from workers import protocol


def _data_url(value: str) -> str:
    """Return a URL that holds what it names; any other would have to be fetched from somewhere."""
    if value[:5].lower() != "data:":
        raise PydanticCustomError(
            "unsupported", "is no data: URL; pictures are not fetched from addresses"
        )
    return value


PictureUrl = Annotated[str, AfterValidator(_data_url)]


class ImageUrl(Body):
    url: PictureUrl


class _Part(Protocol):
    @property
    def text(self) -> str | None: ...
    @property
    def picture(self) -> str | None: ...


def check_part(part: BaseModel, needed: str) -> None:
    """Raise PydanticCustomError for a part of a content that lacks the field of its type."""
    if getattr(part, needed) is None:
        raise PydanticCustomError("missing", "It has no '{name}'", {"name": needed})


def said(parts: Iterable[_Part], between: str = "") -> tuple[str, tuple[protocol.Picture, ...]]:
    """Return the texts of parts as one, with so much between two of them, and the pictures."""
    listed = list(parts)
    if len(listed) == 1 and listed[0].picture is None:
        return listed[0].text or "", ()
    texts: list[str] = []
    pictures: list[protocol.Picture] = []
    length = 0
    for part in listed:
        if part.picture is not None:
            pictures.append(protocol.Picture(part.picture, length))
        else:
            if texts:
                length += len(between)
            texts.append(part.text or "")
            length += len(texts[-1])
    return between.join(texts), tuple(pictures)


def one_turn(turns: Iterable[protocol.ChatMessage], between: str) -> protocol.ChatMessage:
    """Return what a user has said in several turns as one. There is at least one."""
    texts: list[str] = []
    pictures: list[protocol.Picture] = []
    length = 0
    for turn in turns:
        pictures += [protocol.Picture(each.source, length + each.at) for each in turn.pictures]
        texts.append(turn.content)
        length += len(turn.content) + len(between)
    return protocol.ChatMessage("user", between.join(texts), pictures=tuple(pictures))
