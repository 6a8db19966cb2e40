"""Loads an embedding model with its tokenizer and dense layers; nothing is fetched or unpickled.

Any fault of the files raises Refused with MODEL_LOAD_FAILED.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor, nn

from workers.engines import torch_env
from workers.engines.embedding.layout import Dense, Layout, read_layout
from workers.engines.library_config import library_config
from workers.engines.packed_linear import pack_all, unmap
from workers.engines.torch_env import check_missing, library_errors, load_failed
from workers.engines.weight_files import check_sizes, variant_of
from workers.protocol import Load

_UNUSED = "pooler."  #: a head of BERT and its kin, which most repositories leave out
_UNKNOWN_LENGTH = 1 << 20  #: the library's number for "no limit" is far above


@dataclass(slots=True, frozen=True)
class LoadedEmbedder:
    """Holds a model, and the layers that its pooled vectors or its scores go through."""

    model: Any
    tokenizer: Any
    layout: Layout
    dense: nn.Sequential
    dtype: torch.dtype
    device: torch.device
    max_tokens: int
    dimensions: int
    token_types: bool  #: whether the model is told which of a pair's tokens are the text's

    def finish(self, pooled: Tensor) -> Tensor:
        """Turn pooled states, float32 [texts, width], into the model's vectors."""
        vectors: Tensor = self.dense(pooled)
        return nn.functional.normalize(vectors, dim=-1) if self.layout.normalize else vectors


def load(spec: Load) -> LoadedEmbedder:
    """Load an embedding model. Raises Refused with MODEL_LOAD_FAILED if its files are wrong."""
    folder = Path(spec.path)
    device = torch_env.device(spec)
    with library_errors("The model does not load"):
        config = _config(folder)
        layout = read_layout(folder)
        own = getattr(config, "dtype", None) or torch.float32
        dtype = torch_env.choose_dtype("embedding", spec, device, own)
        tokenizer = _tokenizer(folder, config, layout)
        model, missing = _model(folder, config, layout, dtype, device)
        dense = _dense_layers(folder, layout, device)
    check_missing(key for key in missing if layout.score or not key.startswith(_UNUSED))
    if layout.score:
        _prepare_scoring(model, tokenizer)
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise load_failed("The model's tokenizer has more tokens than its embedding.")
    dimensions = _dimensions(config, layout)
    model = model.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        pack_all(model)
        unmap(model)
    return LoadedEmbedder(
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        dense=dense,
        dtype=dtype,
        device=device,
        max_tokens=_max_tokens(spec, config, layout, tokenizer),
        dimensions=dimensions,
        token_types=layout.score is not None and _reads_token_types(model, tokenizer),
    )


def _config(folder: Path) -> Any:
    config = library_config(folder)
    if getattr(config, "is_encoder_decoder", False):
        raise load_failed("Embedding models with an encoder and a decoder are not run here.")
    text = config.get_text_config()
    check_sizes(
        folder,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocab=text.vocab_size,
    )
    if getattr(config, "use_cache", False):
        config.use_cache = False  # keys and values of a text that is read once
    return config


def _tokenizer(folder: Path, config: Any, layout: Layout) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, config=config, local_files_only=True
    )
    backend = tokenizer.backend_tokenizer
    # Defaults in tokenizer.json would cut or fill texts in silence.
    backend.no_truncation()
    backend.no_padding()
    if layout.lower_case:
        normalizer = backend.normalizer
        backend.normalizer = Normalizers([Lowercase(), *([normalizer] if normalizer else [])])
    return tokenizer


def _model(
    folder: Path, config: Any, layout: Layout, dtype: torch.dtype, device: torch.device
) -> tuple[Any, list[str]]:
    auto = transformers.AutoModel
    if layout.score:
        auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map=torch_env.straight_to(device),
        use_safetensors=True,
        variant=variant_of(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    return model, sorted(info["missing_keys"])


def _prepare_scoring(model: Any, tokenizer: Any) -> None:
    """Check that a cross-encoder has one score. Raises Refused.

    Those made of decoders find a text's last token by the padding's id.
    """
    if model.config.num_labels != 1:
        raise load_failed("A cross-encoder with more than one label is not run here.")
    if model.config.get_text_config().pad_token_id is None:
        if tokenizer.pad_token_id is None:
            raise load_failed("The cross-encoder's tokenizer has no padding token.")
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _reads_token_types(model: Any, tokenizer: Any) -> bool:
    taken = inspect.signature(model.forward).parameters
    return "token_type_ids" in taken and "token_type_ids" in tokenizer.model_input_names


def _dense_layers(folder: Path, layout: Layout, device: torch.device) -> nn.Sequential:
    layers: list[nn.Module] = [getattr(nn, layout.score)()] if layout.score else []
    for dense in layout.dense:
        linear = nn.Linear(dense.inputs, dense.outputs, bias=dense.bias, device=device)
        linear.load_state_dict(_weights(folder, dense))
        layers += [linear, getattr(nn, dense.activation)()]
    return nn.Sequential(*layers).requires_grad_(False)


def _weights(folder: Path, dense: Dense) -> dict[str, Tensor]:
    found = load_file(folder / dense.folder / "model.safetensors")
    return {name.removeprefix("linear."): tensor.float() for name, tensor in found.items()}


def _dimensions(config: Any, layout: Layout) -> int:
    """Return the length of the model's vectors. Raises Refused if its parts do not fit."""
    if layout.score:
        return 1
    width = config.get_text_config().hidden_size * len(layout.pooling)
    for dense in layout.dense:
        if dense.inputs != width:
            raise load_failed(f"The module {dense.folder} does not fit the one before it.")
        width = dense.outputs
    return int(width)


def _max_tokens(spec: Load, config: Any, layout: Layout, tokenizer: Any) -> int:
    """Return how many tokens a text may have, those of its prompt and the special ones included."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= (config.pad_token_id or 0) + 1  # theirs are counted from the padding's id on
    known = [layout.max_tokens, positions, tokenizer.model_max_length, spec.max_context]
    return min(int(each) for each in (*known, _UNKNOWN_LENGTH) if each is not None and each > 0)
