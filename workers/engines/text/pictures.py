"""Decodes the pictures of messages, and makes a model's inputs of them by its library's processor.

The processor puts as many tokens in the place of each picture as the model reads of it. It works on
the text that the chat template has written, where what clients say is marked (``control_tokens``):
no client writes a picture's place.
"""

import contextlib
import copy
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image, ImageOps
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from workers.engines import torch_env
from workers.engines.base import Refused, reason
from workers.engines.text.families import PROCESSOR_FILES
from workers.engines.torch_env import load_failed
from workers.protocol import ChatMessage, Picture
from workers.protocol.bounds import MOST_PICTURE_PIXELS

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_TRIED = (56, 42)  #: pixels of the picture that tries a processor at load
_PIXTRAL = "transformers.models.pixtral"
#: What processors give that is no input of ours: the tokens are the sequence's own.
_OF_TOKENS = frozenset({"input_ids", "attention_mask"})


class Read(NamedTuple):
    """Holds a prompt with the places of its pictures filled, and what the model reads of them."""

    ids: list[int]
    inputs: Mapping[str, Any]


class PictureReader:
    """Makes inputs of pictures for one model. One thread at a time may read."""

    def __init__(self, processor: Any, dtype: torch.dtype) -> None:
        """``dtype``: the model's number format; jobs that wait hold their inputs in it."""
        self._processor = processor
        self._dtype = dtype

    def check(self, tokenizer: Any) -> None:
        """Try the processor on a picture. Raises Refused for one that does not work."""
        token = _placeholder(self._processor)
        if token is None:
            raise load_failed("The model's processor of images names no token for a picture.")

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            return ids

        with torch_env.library_errors("The model's processor of images does not work"):
            self._read(f"a{token}b", [Image.new("RGB", _TRIED)], encode)

    def read(
        self, prompt: str, messages: Sequence[ChatMessage], encode: Callable[[str], list[int]]
    ) -> Read:
        """Return the ids and inputs of a rendered prompt. Raises Refused.

        ``encode`` returns the ids of a text with marks.
        """
        try:
            images = [decoded(each) for one in messages for each in one.pictures]
            return self._read(prompt, images, encode)
        except Refused:
            raise
        except Exception as error:
            if torch_env.is_out_of_memory(error):
                raise Refused(
                    "OUT_OF_MEMORY", "The pictures of this request do not fit into memory."
                ) from error
            raise Refused(
                "INVALID_REQUEST",
                f"The model's processor of images refuses these messages: {reason(error)}",
                param="messages",
            ) from error

    def _read(self, prompt: str, images: list[Any], encode: Callable[[str], list[int]]) -> Read:
        own = self._processor.tokenizer
        self._processor.tokenizer = _Encoder(own, encode)
        try:
            found = self._processor(
                images=images,
                text=[prompt],
                return_tensors="pt",
                add_special_tokens=False,
                sanitize_control_tokens=True,
            )
        finally:
            self._processor.tokenizer = own
        ids: list[int] = found["input_ids"][0].tolist()
        inputs = {name: each for name, each in found.items() if name not in _OF_TOKENS}
        return Read(ids, {name: self._in_format(each) for name, each in inputs.items()})

    def _in_format(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.to(self._dtype)


class _Encoder:
    """Encodes by our own rules for a processor that takes it for its tokenizer."""

    def __init__(self, tokenizer: Any, encode: Callable[[str], list[int]]) -> None:
        self._tokenizer = tokenizer
        self._encode = encode

    def __call__(self, text: list[str], **_settings: Any) -> dict[str, Any]:
        ids = [self._encode(each) for each in text]
        return _Encoding(input_ids=ids, attention_mask=[[1] * len(each) for each in ids])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _Encoding(dict[str, Any]):
    """Holds what a tokenizer returns, as far as processors of pictures ask for it."""

    def char_to_token(self, _row: int, _place: int) -> int:
        """Return a place among the tokens, for a count that nothing here reads (Idefics 3)."""
        return 0


def open_processor(folder: Path, config: Any, tokenizer: Any) -> Any:
    """Return the library's processor of images, without what reads videos and sounds.

    Its libraries are not needed for pictures. Raises Refused.
    """
    name = _named_processor(folder) or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    with torch_env.library_errors("The model's processor of images does not load"):
        if name is None:
            raise load_failed("Its library has no processor of images for this model.")
        known = class_of(name)
        names = getattr(known.__init__, "__globals__", {})
        if names.get("num2words", known) is None:  # SmolVLM's, to count the frames of a video
            names["num2words"] = str
        images = transformers.AutoImageProcessor.from_pretrained(
            folder, config=config, backend="pil", trust_remote_code=False, local_files_only=True
        )
        # Some processors change what their tokenizer holds for special.
        parts = {"image_processor": images, "tokenizer": copy.deepcopy(tokenizer)}
        settings, _ = known.get_processor_dict(folder, local_files_only=True)
        attributes = [parts.get(part) for part in known.get_attributes()]
        unchecked = {"check_argument_for_proper_class": _unchecked}
        lenient: Any = type(known.__name__, (known,), unchecked)
        # The library looks at the names of the arguments of this very class.
        return lenient.from_args_and_dict(attributes, settings)


def class_of(name: str) -> Any:
    """Return a processor of the library. Raises Refused for one that needs what is not installed.

    Pixtral's wants torchvision for one function, which stands beside Pillow's image processor too.
    """
    if name == "PixtralProcessor" and not is_torchvision_available():
        with_pillow = importlib.import_module(f"{_PIXTRAL}.image_processing_pil_pixtral")
        sys.modules.setdefault(f"{_PIXTRAL}.image_processing_pixtral", with_pillow)
        return importlib.import_module(f"{_PIXTRAL}.processing_pixtral").PixtralProcessor
    known = getattr(transformers, name)
    if lacks := getattr(type(known), "_backends", None) or vars(known).get("_backends"):
        raise load_failed(f"Its library's {name} needs {', '.join(lacks)}.")
    return known


def _named_processor(folder: Path) -> str | None:
    """Return the processor that a model's files name, if it is one of the library's: models of one
    type may have several (Pixtral is a LLaVA)."""
    for file in PROCESSOR_FILES:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((folder / file).read_text())
            name = found.get("processor_class") if isinstance(found, dict) else None
            if name in PROCESSOR_MAPPING_NAMES.values():
                return str(name)
    return None


def _unchecked(_self: Any, _name: str, _argument: Any) -> None:
    """Take what is not there for what is not needed."""


def _placeholder(processor: Any) -> str | None:
    """Return what templates write in the place of a picture."""
    return getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)


def decoded(picture: Picture) -> Any:
    """Decode a file as the library does, its first frame. Raises Refused.

    Its size is checked before it is decoded: it is the one that the gateway has read and bounded,
    with those of the request's other pictures. A decoder's own message is not passed on.
    """
    try:
        with Image.open(Path(picture.source), formats=_FORMATS) as found:
            if found.width * found.height > MOST_PICTURE_PIXELS:
                raise _bad("is too large")
            if picture.width and found.size != (picture.width, picture.height):
                raise _bad("has another size than its header says")
            found.load()
            return ImageOps.exif_transpose(found).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad("cannot be decoded as PNG, JPEG, WebP or GIF") from error


def _bad(what: str) -> Refused:
    return Refused("INVALID_REQUEST", f"A picture of the messages {what}.", param="messages")
