"""Tells a model's longest context and number format from its config, in all spellings.

The rules are those of the text engine (workers/engines/text/loading.py) and of the library that
reads the config there: where they change, this changes too.
"""

from collections.abc import Iterator
from typing import Any

from model_store.errors import BadFiles
from model_store.inspection.facts import CONTEXT_FIELDS, number
from model_store.kinds import known_names

FORMATS = frozenset({"float32", "float16", "bfloat16", "float64"})
#: what the library renames as it reads a config
_RENAMED = {"su": "longrope", "mrope": "default"}
_ORIGINAL = "original_max_position_embeddings"
#: whose frequencies all change once any sequence is longer than the original context
_CHANGING = ("dynamic", "longrope")
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}


def config_dtype(config: dict[str, Any]) -> str | None:
    """Return the number format that a config names, ``dtype`` before the older ``torch_dtype``.

    None where it names none ("auto", null), or none of the usual: then the weights tell.
    """
    named = config.get("dtype", config.get("torch_dtype"))
    return named if isinstance(named, str) and named in FORMATS else None


def longest_context(config: dict[str, Any]) -> int | None:
    """Return the tokens that a model reads at most, None if its config does not tell.

    YaRN stretches the original context by its factor, if all layers have it. With a scaling that
    would change what is computed of other texts in the batch, the context ends at the original one.
    Raises BadFiles for a rotary scaling that the library cannot read.
    """
    _check_base(config)
    scalings = list(_scalings(config))
    for key, scaling in scalings:
        _check(key, scaling, config)
    positions = number(config, *CONTEXT_FIELDS)
    if positions is None or not scalings:
        return positions
    lengths = [_stretched(scaling, config, positions) for _, scaling in scalings]
    return lengths[0] if len(lengths) == 1 else min(positions, *lengths)


def _stretched(scaling: dict[str, Any], config: dict[str, Any], positions: int) -> int:
    """Return the tokens that a scaling is good for, of a model that has so many positions."""
    kind = _kind(scaling, config)
    original = number(config, _ORIGINAL) or number(scaling, _ORIGINAL)
    if kind in _CHANGING:
        return min(positions, original or positions)
    if kind == "yarn":
        return max(positions, int((original or positions) * (scaling["factor"] or 1)))
    return positions


def _scalings(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rotary scaling by its key, or those of several types of layers."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise BadFiles(f"config.json: {key} is not an object.")
        parts = [part for part in value.values() if isinstance(part, dict)]
        if value:
            yield from ((key, part) for part in parts or [value])
            return  # where both are there, the library reads the first


def _kind(scaling: dict[str, Any], config: dict[str, Any]) -> str:
    named = scaling.get("rope_type", scaling.get("type", "default"))
    if config.get("model_type") in ("phi3", "phi4_multimodal") and named == "yarn":
        return "longrope"
    return _RENAMED.get(named, named) if isinstance(named, str) else ""


def _check(key: str, scaling: dict[str, Any], config: dict[str, Any]) -> None:
    kind = _kind(scaling, config)
    known = known_names("rope types")
    if kind not in known:
        names = ", ".join(sorted(known))
        raise BadFiles(f"config.json: {key} is of the type '{kind[:40]}'; known are {names}.")
    for name in _REQUIRED.get(kind, ()):
        if kind == "yarn" and scaling.get(name, 0) is None:
            continue  # then the library tells it from the lengths
        if not _is_positive(scaling.get(name)):
            raise BadFiles(f"config.json: {key} has no good {name}, which '{kind}' needs.")
    _check_base(scaling)


def _check_base(part: dict[str, Any]) -> None:
    if part.get("rope_theta") is not None and not _is_positive(part["rope_theta"], most=1e300):
        raise BadFiles("config.json: rope_theta is not a number above 0.")


def _is_positive(value: Any, most: float = 2**31) -> bool:
    """Tell whether a value is a number above 0 and, as NaN and infinity are not, below ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < most
