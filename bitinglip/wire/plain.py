"""Reads plain bodies, which are nearly all, in a fraction of the time that pydantic takes.

A plain body holds known fields only, with values of their exact types within their bounds. What a
reader knows of these comes from the pydantic class itself, so that there is one schema. Any other
body, right or wrong, is left to pydantic, which alone says what is wrong with it.
"""

from collections.abc import Callable, Iterable, Mapping
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, FailFast
from pydantic.fields import FieldInfo

M = TypeVar("M", bound=BaseModel)
V = TypeVar("V", bound=Callable[[Any], Any])
#: the type of a field's JSON, and what makes the field's value of it
Converted = tuple[Any, Callable[[Any], Any]]

_SCALARS = (bool, int, float, str)
_BOUNDS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt", MinLen: "min_length", MaxLen: "max_length"}
_set = object.__setattr__
_unchanging: set[Callable[[Any], Any]] = set()
_readers: "dict[type[BaseModel], PlainReader[Any]]" = {}


def leaves_plain(validator: V) -> V:
    """Declare that a validator returns values of its field's own JSON type as they are."""
    _unchanging.add(validator)
    return validator


def read_plain(model: type[M], raw: bytes | bytearray) -> M | None:
    """Return a body of a class that has a reader; None if there is none, or it is not plain."""
    reader = _readers.get(model)
    return None if reader is None else reader.read(raw)


class PlainReader(Generic[M]):
    """Reads bodies of one class, and makes of them what pydantic would make."""

    def __init__(
        self,
        model: type[M],
        converted: Mapping[str, Converted] | None = None,
        *,
        nested: "Iterable[PlainReader[Any]]" = (),
        satisfied: Iterable[str] = (),
    ) -> None:
        """Derive a reader from a class, and from readers of those that it holds.

        converted: fields whose values are made of their JSON, which no plain body leaves out. Each
        validator of the whole class has to be named in ``satisfied``: no plain body is one that it
        refuses. Raises ValueError for a class of which too little is known.
        """
        if unknown := set(model.__pydantic_decorators__.model_validators) - set(satisfied):
            raise ValueError(f"{model.__name__}: is {unknown} true of each plain body?")
        self.model = model
        self._convert = {name: convert for name, (_, convert) in (converted or {}).items()}
        self._defaults = {name: field.default for name, field in model.model_fields.items()}
        self._extra: Any = {} if model.model_config.get("extra") == "allow" else None
        types = _Types({each.model: each for each in nested})
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for name, (kind, _) in (converted or {}).items():
            fields.append((name, kind))
        for name, field in model.model_fields.items():
            if name in self._convert:
                continue
            if field.default_factory is not None:
                raise ValueError(f"{model.__name__}.{name}: a default has to be the same for all")
            if field.alias is not None:
                continue
            if (kind := types.of_field(field)) is not None:
                if (reader := types.nested_in(field.annotation)) is not None:
                    self._convert[name] = reader.of_any
                fields.append((name, kind) if field.is_required() else (name, kind, field.default))
        self.struct = msgspec.defstruct(
            f"Plain{model.__name__}",
            fields,
            kw_only=True,
            forbid_unknown_fields=True,
            omit_defaults=True,
        )
        self._decoder = msgspec.json.Decoder(self.struct)

    def used(self) -> None:
        """Have ``read_plain`` read bodies of this class from now on."""
        _readers[self.model] = self

    def read(self, raw: bytes | bytearray) -> M | None:
        """Return the body; None for one that is not plain, or wrong."""
        try:
            given = self._decoder.decode(raw)
        except (ValueError, RecursionError):  # msgspec's errors, and those of UTF-8
            return None
        return self.of(msgspec.to_builtins(given))

    def of(self, given: dict[str, Any]) -> M:
        """Make a model of plain values by their names; a default counts as not given."""
        values = {**self._defaults, **given}
        for name in self._convert.keys() & given.keys():
            values[name] = self._convert[name](given[name])
        made = self.model.__new__(self.model)  # and then as model_construct does, which is slow
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", set(given))
        _set(made, "__pydantic_extra__", self._extra)
        _set(made, "__pydantic_private__", None)
        return made

    def of_any(self, given: Any) -> Any:
        """Make models of what a field of this class holds: one, or a list of them."""
        return [self.of(each) for each in given] if type(given) is list else self.of(given)


class _Types:
    """Translates pydantic's types to msgspec's, as far as these say the same."""

    def __init__(self, readers: "Mapping[type[BaseModel], PlainReader[Any]]") -> None:
        self._readers = readers

    def of_field(self, field: FieldInfo) -> Any:
        """Return the type of a field's plain values; None if it has none."""
        return self._bounded(field.annotation, field.metadata)

    def nested_in(self, annotation: Any) -> "PlainReader[Any] | None":
        """Return the reader of the models that a field holds, if it holds some."""
        found = self._readers.get(annotation)
        for part in get_args(annotation):
            found = found or self.nested_in(part)
        return found

    def _of(self, annotation: Any) -> Any:
        origin, parts = get_origin(annotation), get_args(annotation)
        if annotation in _SCALARS or origin is Literal:
            return annotation
        if annotation in self._readers:
            return self._readers[annotation].struct
        if origin is Annotated:
            return self._bounded(parts[0], [part for each in parts[1:] for part in _flat(each)])
        if origin in (Union, UnionType) and NoneType in parts and len(parts) == 2:
            kind = self._of(next(each for each in parts if each is not NoneType))
            return None if kind is None else kind | None
        if origin is list:
            kind = self._of(parts[0])
            return None if kind is None else GenericAlias(list, (kind,))
        return None

    def _bounded(self, annotation: Any, metadata: Iterable[Any]) -> Any:
        """Return a type with its bounds; None if something else is asked of its values."""
        kind, bounds = self._of(annotation), dict[str, Any]()
        for each in metadata:
            if isinstance(each, FailFast):
                continue
            if isinstance(each, BeforeValidator) and each.func in _unchanging:
                continue
            if type(each) not in _BOUNDS:
                return None
            name = _BOUNDS[type(each)]
            bounds[name] = getattr(each, name)
        if kind is None or not bounds:
            return kind
        if isinstance(bounds.get("lt"), int):  # msgspec knows integers of 64 bits, and no 2**63
            bounds["le"] = bounds.pop("lt") - 1
        return Annotated[kind, msgspec.Meta(**bounds)]


def _flat(metadata: Any) -> Iterable[Any]:
    return metadata.metadata if isinstance(metadata, FieldInfo) else (metadata,)
