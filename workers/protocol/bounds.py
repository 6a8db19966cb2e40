"""Bound what a worker says, so that nothing computed of it can overflow or raise.

The bounds are far above anything lawful: a value beyond one means that the worker is broken.
"""

from typing import Annotated

from msgspec import Meta

MOST_MESSAGE = 4096  #: characters
MOST_GRAMMAR = 1 << 18  #: characters of a grammar's source
#: Logprobs of one answer, those of alternatives included: they come in one piece in the end.
MOST_LOGPROBS = 350_000
MOST_SEQUENCES = 128  #: that one text job makes
MOST_PICTURE_PIXELS = 1 << 26  #: of a picture in a message; a larger one is never decoded

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MOST_BYTES = 2**50
Size = Annotated[int, Meta(ge=0, le=MOST_BYTES)]  #: bytes
Dimensions = Annotated[int, Meta(ge=1, le=2**20)]
Slots = Annotated[int, Meta(ge=1, le=2**16)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
StepSeconds = Annotated[float, Meta(ge=0, le=7200)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]  #: finite
SampleRate = Annotated[int, Meta(ge=1, le=768_000)]

JobId = Annotated[str, Meta(max_length=64)]
Name = Annotated[str, Meta(max_length=256)]
Message = Annotated[str, Meta(max_length=MOST_MESSAGE)]

Preview = Annotated[bytes, Meta(max_length=1 << 20)]
Samples = Annotated[bytes, Meta(max_length=1 << 20)]
MOST_VECTOR_BYTES = (16 << 20) - (64 << 10)  #: one frame holds them, with the rest of their event
Vectors = Annotated[bytes, Meta(max_length=MOST_VECTOR_BYTES)]

#: What ``details`` may hold: plain values, three levels deep. JSON and the database take them all.
Plain = str | int | Number | bool | None
Shallow = Plain | list[Plain] | dict[str, Plain]
Detail = Plain | list[Shallow] | dict[str, Shallow]
Details = Annotated[dict[str, Detail], Meta(max_length=64)]
