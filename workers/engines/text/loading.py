"""Loads a text model and its tokenizer; nothing is fetched, unpickled or executed.

Any fault of the files raises :class:`Refused` with MODEL_LOAD_FAILED.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from workers.engines import torch_env
from workers.engines.base import Refused, reason
from workers.engines.library_config import library_config
from workers.engines.library_progress import placed_by_library
from workers.engines.peer_copies import check_copies
from workers.engines.text.adapter import merged
from workers.engines.text.families import (
    Family,
    auto_class,
    decoder_starts,
    family_of,
    reads_pictures,
)
from workers.engines.text.fused import may_fuse, move
from workers.engines.text.pictures import PictureReader, open_processor
from workers.engines.text.python_tokenizers import is_python, with_backend
from workers.engines.text.quantized import (
    EIGHT_BITS,
    MEMORY_SHARE,
    check_quantized,
    joins_experts,
    library_setting,
    quantization_of,
    quantize,
)
from workers.engines.text.split import dispatch, free_room, leave_indices, split
from workers.engines.text.translation import set_source, starts_in
from workers.engines.torch_env import DTYPES, load_failed
from workers.engines.weight_files import check_sizes, stored_dtype, tensor_bytes, variant_of
from workers.protocol import Load, TextOptions

#: Rotations whose frequencies change for all rows, once a sequence is longer than the original.
_GROWING = ("dynamic", "longrope")
_RECURRENT = {"linear_attention"}
_RECURRENT_CONTEXT = 131_072  #: tokens: a bound on a request, not the model's
#: Chats must tell control tokens from text that looks like them, and such tokenizers do not.
_NO_RUST = "The tokenizer does not work: it is one in Python, which only encoders may have."
_RELATIVE_CONTEXT = 1024  #: the same, of an encoder-decoder that was made for no length


def nothing(_count: int) -> None:
    """Take no notice of bytes that are loaded."""


@dataclass(slots=True, frozen=True)
class LoadedModel:
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    eos_ids: frozenset[int]
    vocab_size: int  #: rows of the output head
    max_positions: int
    model_type: str = ""
    spread: bool = False  #: its layers lie on several devices
    family: Family = "causal"
    starts: tuple[int, ...] = ()  #: tokens that a decoder begins with, if an encoder has the prompt
    pictures: PictureReader | None = None  #: makes its inputs of pictures; None: it reads none
    quantization: str | None = None  #: of its linear layers; None: they are in full precision
    placed: Callable[[int], None] = nothing  #: is told the bytes that a decoder packs


def load(spec: Load, placed: Callable[[int], None] = nothing) -> LoadedModel:
    """Load model and tokenizer of ``spec``. Raises :class:`Refused`.

    ``placed`` is told the bytes of weights that have come to where they are computed.
    """
    folder = Path(spec.path)
    config = _config(folder)
    _check_files(folder, config)
    device = torch_env.device(spec)
    cards = len(spec.visible_devices.split(",")) if device.type == "cuda" else 1
    quantization = quantization_of(spec, config, device, spread=cards > 1)
    dtype = _dtype(spec, config, device)
    tokenizer = _tokenizer(folder, config)
    family = family_of(config)
    options = spec.text or TextOptions()
    set_source(tokenizer, family, options)
    pictures = None
    if reads_pictures(folder, family):
        processor = open_processor(folder, config, tokenizer)
        pictures = PictureReader(processor, dtype)
        pictures.check(tokenizer)
    model = _model(
        folder,
        config,
        dtype,
        device,
        spec,
        spread=cards > 1,
        quantization=quantization,
        placed=placed,
    )
    vocab = model.get_output_embeddings().weight.shape[0]
    _check_vocabulary(tokenizer, model, vocab)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        # Some methods compute in one format only, whatever is asked for.
        dtype=dtype if quantization is None else model.get_input_embeddings().weight.dtype,
        device=device,
        eos_ids=_eos_ids(model, tokenizer),
        vocab_size=vocab,
        max_positions=max_positions(config),
        model_type=getattr(config, "model_type", None) or "",
        spread=cards > 1,
        family=family,
        starts=starts_in(tokenizer, decoder_starts(model), options) if family == "seq2seq" else (),
        pictures=pictures,
        quantization=quantization,
        placed=placed,
    )


def private_copy(tokenizer: Any) -> Any:
    """Copy a tokenizer with its state: the Rust objects are not safe between threads."""
    return copy.deepcopy(tokenizer)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise load_failed("The model's folder has no config.json.")
    with torch_env.library_errors("The model's config.json is not valid"):
        return library_config(folder)


def _dtype(spec: Load, config: Any, device: torch.device) -> torch.dtype:
    """Return the wanted dtype, else the config's, else the weights', if the device computes it
    well."""
    own = getattr(config, "dtype", None) or stored_dtype(Path(spec.path)) or torch.float32
    if spec.dtype is None and own not in DTYPES.values():
        raise load_failed(f"The model's own dtype {own} is not supported; set one.")
    model_type = getattr(config, "model_type", "")
    return torch_env.choose_dtype("text", spec, device, own, model_type=model_type)


def _check_files(folder: Path, config: Any) -> None:
    config = config.get_text_config(decoder=True)
    check_sizes(
        folder,
        layers=getattr(config, "num_hidden_layers", 0) or 0,
        hidden=getattr(config, "hidden_size", 0) or 0,
        vocab=getattr(config, "vocab_size", 0) or 0,
    )


# ---- model and tokenizer ---------------------------------------------------------------------


def _model(
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    spec: Load,
    *,
    spread: bool,
    quantization: str | None = None,
    placed: Callable[[int], None] = nothing,
) -> Any:
    """Load the model to its device, or its layers to all that the process sees, as planned.

    No copy of it is made in RAM. Weights that the decoder joins stay mapped from their files, in
    the files' format, until each is moved; all others go to the card as they are read, where the
    library puts them if there are several.
    """
    if spread and device.type == "cuda":
        check_copies([torch.device("cuda", card) for card in range(torch.cuda.device_count())])
    in_turn = "balanced" if spec.even_split else "sequential"
    where: Any = in_turn if spread else torch_env.straight_to(device)
    read_as = dtype
    # A LoRA is merged on the card: in RAM each mapped page that it changes would be copied.
    is_ours = quantization in EIGHT_BITS or (quantization is None and may_fuse(config))
    stays_mapped = is_ours and spec.adapter is None and not joins_experts(config)
    if stays_mapped and where is not None:
        where, read_as = None, getattr(config, "dtype", None) or dtype
    # Of weights that stay mapped nothing has been read yet.
    counted = nullcontext() if where is None else placed_by_library(tensor_bytes(folder), placed)
    with torch_env.library_errors("The weights do not load"), counted:
        model, info = auto_class(family_of(config)).from_pretrained(
            folder,
            config=config,
            dtype=read_as,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            variant=variant_of(folder),
            output_loading_info=True,
            device_map=where,
            max_memory=_max_memory(spec, quantization) or None,
            quantization_config=library_setting(quantization, config, dtype, folder, placed),
        )
    torch_env.check_missing(info["missing_keys"])
    keep_rotation(model)
    check_quantized(model, quantization)
    if spec.adapter is not None:
        model = merged(model, Path(spec.adapter))
    if spread and stays_mapped:
        room = spec.device_weights or free_room()
        places = split(model, room, dtype, device.type, even=spec.even_split)
        move(model, places, dtype, placed)
        dispatch(model, places)
    elif spread:
        # Where all of it is on one device, the library makes no map.
        check_placement(getattr(model, "hf_device_map", {"": model.device}))
    elif quantization is None or quantization in EIGHT_BITS:
        if quantization is not None:
            quantize(model, quantization, device, dtype, placed)
        move(model, {"": device}, dtype, placed)
    if spread:
        leave_indices(model)
    return model.eval().requires_grad_(False)


def keep_rotation(model: Any) -> None:
    """Have rotations keep the frequencies of short texts, which are all that come.

    ``max_positions`` ends the context there. The library looks for a longer one in each forward
    pass: the host waits for the card, and a graph cannot be captured.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):  # by the kinds of its layers
            module.rope_type = {name: _kept(kind) for name, kind in kinds.items()}
        elif isinstance(kinds, str):
            module.rope_type = _kept(kinds)


def _kept(kind: str) -> str:
    return "default" if kind in _GROWING else kind


def _max_memory(spec: Load, quantization: str | None) -> dict[int, int]:
    """Return the bytes of weights that the library may put on each device."""
    share = 1 if quantization is None else MEMORY_SHARE
    return {card: int(size / share) for card, size in enumerate(spec.device_weights)}


def check_placement(device_map: Mapping[str, Any]) -> None:
    """Refuse a model of which a part is not on a card.

    device_map: the devices of the model's modules, as the library chose them. Modules that do not
    fit the cards it puts into the host's memory or on the disk silently.
    """
    on_cards = (isinstance(where, int) or "cuda" in str(where) for where in device_map.values())
    if not all(on_cards):
        raise torch_env.out_of_memory()


def _tokenizer(folder: Path, config: Any) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=False, local_files_only=True
        )
        if is_python(tokenizer):
            if not config.is_encoder_decoder:
                raise load_failed(_NO_RUST)
            tokenizer = with_backend(tokenizer)
        backend = tokenizer.backend_tokenizer
        if not is_python(tokenizer):
            # Defaults in tokenizer.json would cut or fill prompts in silence.
            backend.no_truncation()
            backend.no_padding()
        tokenizer.decode(backend.encode("A try.").ids)
    except Refused:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise load_failed(f"The tokenizer does not work: {reason(error)}") from error
    return tokenizer


def is_panic(error: BaseException) -> bool:
    """True for a panic of Rust code, whose class is no Exception and cannot be imported."""
    return type(error).__name__ == "PanicException"


def _check_vocabulary(tokenizer: Any, model: Any, vocab: int) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise load_failed(
            f"The tokenizer knows the id {largest}, but the embedding has only {rows} rows."
        )
    if vocab > rows:
        raise load_failed(f"The output head has {vocab} rows, the embedding only {rows}.")


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return all ids that end an answer: those of the configurations and the tokenizer's."""
    ids: set[Any] = set()
    own = model.config.get_text_config(decoder=True)
    for source in (model.generation_config, model.config, own, tokenizer):
        found = getattr(source, "eos_token_id", None)
        ids.update(found if isinstance(found, list | tuple) else [found])
    return frozenset(token for token in ids if isinstance(token, int))


def max_positions(config: Any) -> int:
    """Return how many positions the model knows.

    Models that are recurrent in all layers know no position, so none is too far.

    Some rotary scalings change all frequencies once any sequence is longer than the original
    context; rows of one batch would then disturb each other, so the context ends there. YaRN's are
    the same for all lengths, and good for the original context times its factor.
    """
    config = config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None and config.is_encoder_decoder:  # T5 and its kin count distances only
        positions = getattr(config, "n_positions", None) or _RELATIVE_CONTEXT
    if positions is None and set(getattr(config, "layer_types", None) or ()) == _RECURRENT:
        return _RECURRENT_CONTEXT
    if not isinstance(positions, int) or positions < 1:
        raise load_failed("The model's config.json does not tell its longest context.")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return min(_positions_of(each, positions) for each in kinds)


def _positions_of(rope: Mapping[str, Any], positions: int) -> int:
    """Return how many positions a rotation is good for, of a model that has so many."""
    original = rope.get("original_max_position_embeddings") or positions
    if rope.get("rope_type") in _GROWING:
        return min(positions, original)
    if rope.get("rope_type") == "yarn":
        return max(positions, int(original * (rope.get("factor") or 1)))
    return positions
