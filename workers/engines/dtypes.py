"""Chooses the number format that a model computes in, by its files and its device.

Free of torch: the gateway estimates memory by the very choice that the engines make. Pure.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

#: Bytes of a number in the formats that a setting can name.
DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})

#: Compute capability from which a card multiplies bfloat16; older ones emulate it, which torch
#: counts as support.
_NATIVE_BFLOAT16 = (8, 0)

#: Cards whose half precision makes NaN in some of cuDNN's convolutions: Turing without tensor
#: cores (TU116, TU117), which its capability does not tell.
_FAULTY_CAPABILITY = (7, 5)
_FAULTY_NAMES = re.compile(r"\bGTX 16\d\d|\bT(?:400|500|550|600|1000|1200|2000)\b|\bMX4?[45]50\b")

#: Text models, by their type, whose activations overflow in float16.
_OVERFLOWING = ("gemma", "plamo2", "glm4", "t5", "mt5", "umt5")

#: Kinds that are computed in one half of the size on a card; the others are small and sensitive.
HALVED = ("text", "embedding", "image", "bark", "whisper")


def dtype_for(
    kind: str,
    stored: str | None,
    capability: tuple[int, int] | None,
    name: str = "",
    *,
    model_type: str = "",
) -> str:
    """Return the number format that a model computes in where no setting names one.

    kind: text, embedding, image, bark, whisper, or another type of model, which is computed in
    float32. stored: the format of the files, None if it is not known. capability: the card's
    compute capability, None on a CPU. name: the driver's name of the card. model_type: of a text
    model.

    On a CPU text follows its files, except that float16, for which CPUs have no fast products,
    becomes bfloat16; all else is float32. On a card float32 takes several times longer than the
    half precision of its tensor cores: bfloat16 where it is native, else float16. float16 stays
    what it is, since models that come in it overflow in nothing but a decoder of images, which
    the pipelines cast for that; Whisper was trained in it.
    """
    if capability is None:
        if kind != "text":
            return "float32"
        return "bfloat16" if stored == "float16" else stored or "float32"
    if kind not in HALVED or (kind != "text" and is_half_faulty(capability, name)):
        return "float32"
    if kind == "whisper" or stored == "float16":
        return "float16"
    if capability >= _NATIVE_BFLOAT16:
        return "bfloat16"
    return "float32" if kind == "text" and model_type.startswith(_OVERFLOWING) else "float16"


def is_half_faulty(capability: tuple[int, int], name: str) -> bool:
    """True for a card whose half precision makes NaN in convolutions."""
    return capability == _FAULTY_CAPABILITY and _FAULTY_NAMES.search(name) is not None


def doubt(kind: str, wanted: str, capability: tuple[int, int] | None, name: str = "") -> str | None:
    """Say what is to be expected of a format that a setting names; None if nothing is.

    The setting is honoured all the same.
    """
    if capability is None:
        return None
    if wanted == "bfloat16" and capability < _NATIVE_BFLOAT16:
        return (
            f"bfloat16 is emulated on this card (compute capability {capability[0]}."
            f"{capability[1]}) and several times slower than float16."
        )
    if wanted != "float32" and kind != "text" and is_half_faulty(capability, name):
        return f"{wanted} makes NaN on cards such as this one ({name}); float32 does not."
    return None
