"""All request bodies share their strictness, common fields and the order of defaults."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bitinglip.wire.plain import leaves_plain

MAX_TIMEOUT = 86_400


T = TypeVar("T")


class Body(BaseModel):
    """Holds a request body; it converts no types and refuses unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class AllowedValues:
    """Restricts a field to the values that change nothing; any other is not supported."""

    allowed: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, _source: Any, _next: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _next: Any) -> dict[str, Any]:
        shown = "not supported" if self.allowed == (None,) else "not supported with other values"
        return {"enum": list(self.allowed), "description": shown}

    def _check(self, value: Any) -> Any:
        for allowed in self.allowed:
            if value == allowed and isinstance(value, bool) is isinstance(allowed, bool):
                return value
        raise PydanticCustomError("unsupported", "is not supported with this value")


@leaves_plain
def whole(value: Any) -> Any:
    """Return a number as an integer if it is whole, and anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


#: Lets an integer be written as 50.0, as languages do that know one kind of number.
Whole = BeforeValidator(whole, json_schema_input_type=int)

ModelName = Annotated[str, Field(min_length=1, max_length=256)]


Timeout = Annotated[
    float,
    Field(
        gt=0,
        le=MAX_TIMEOUT,
        description="seconds until the request is given up; server.request_timeout is the most",
    ),
]


def coalesce(asked: T | None, own: T | None, otherwise: T) -> T:
    """Return the request's value, else the model's default, else the API's."""
    if asked is not None:
        return asked
    return otherwise if own is None else own


def named_language(name: str | None) -> str | None:
    """Return the language that a request names; None if it is blank or ``auto``."""
    return None if name is None or name.strip().lower() in ("", "auto") else name
