"""The memory of a model is estimated from its files and settings before it is loaded.

``footprints`` learns what a model really took. The rules are those of the engines: where an engine
changes its own, this changes too; their numbers are in workers/engines/defaults.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from model_store.manifest import Manifest
from workers.devices import Device
from workers.engines.defaults import (
    CONTEXT_BYTES,
    EMBEDDING_STEP_TOKENS,
    IMAGE_BATCH,
    SPEECH_CACHE_BYTES,
    SPEECH_ROWS,
    TEXT_CACHE_BYTES,
    TEXT_ROWS,
    TEXT_STEP_TOKENS,
    TRANSCRIPTION_BATCH,
)
from workers.engines.dtypes import DTYPE_BYTES
from workers.engines.quantization import FORMATS, WIDENED, four_bit_bytes

_MB = 1_000_000
_HALF = 2  #: bytes of a number of 16 bits
_CACHE_PART = 8  #: of a card, for the KV cache of one text model
_BYTES = {**DTYPE_BYTES, "float64": 8}

#: The graphs of a text model on a card: what the driver keeps for each of its layers, in each of as
#: many graphs as there may be. Reckoned from other servers' figures, not measured; they are counted
#: with the load or the steps that capture them. And where the number of layers is not known.
_GRAPH_LAYER, _GRAPHS, _UNKNOWN_GRAPHS = 200_000, 64, 300 * _MB
#: A decoder's layer has about so many times as many outputs, of all its projections, as inputs.
_LAYER_WIDTHS = 8.5
_LOGIT_COPIES = 4  #: float32 rows of the vocabulary alive at once while sampling

#: torch imports Triton where it is installed, as it is beside its CUDA builds.
_TRITON = 150 * _MB if find_spec("triton") else 0
#: A process with the libraries imported; on a card what it takes beside its context. Measured on a
#: CPU: 460 MB resident with a model of 1 MB and a cache of 68 MB.
_PROCESS = {"cpu": 400 * _MB + _TRITON, "cuda": 76 * _MB}
#: On a CPU the weights are packed into a layout of their own, tied embeddings twice, and the
#: files stay mapped until the system wants their pages back (135M bfloat16: 998 MB without cache).
_PACKED = 1.25
#: Images: bytes of one element that a pass holds for each latent (or pixel) and channel at its
#: peak. Measured on a CPU: denoisers 20 to 33, decoders 7.4 to 10.2; rounded up.
_DENOISER_COPIES, _DECODER_COPIES = 34, 12
_PIXELS_PER_LATENT = 64
_ROWS_PER_IMAGE = 2  #: with and without the prompt
_GROUP_PART = 0.1  #: of the largest component that is on the device at once, with group offload
#: Sound: rows at once, and what a pass takes beside their caches. Measured on a CPU: Bark of 500 MB
#: 1.47 GB, Whisper small 2.6 GB with 8 rows.
_SOUND_ROWS = {"speech": SPEECH_ROWS, "transcription": TRANSCRIPTION_BATCH}
_ACTIVATIONS = 200 * _MB
OFFLOADS = ("none", "model", "group", "group_low_ram")  #: the mildest first
_OTHERS = 1.2  #: for kinds that no engine here runs: what weights alone do not say
#: Embeddings: bytes of one element that a pass holds for each token. Measured on a CPU: 11 KB (six
#: layers of 384) to 26 KB (24 of 1024); the widest models are four times as wide.
_EMBEDDING_TOKEN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """A model takes memory as these settings say."""

    device: str  #: "cpu", "cuda" or "fake"
    dtype: str | None = None
    quantization: str | None = None  #: text: a key of FORMATS
    max_context: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"  #: text: "fp8" is one byte a number
    max_batch: int | None = None
    graphs: bool = False  #: text: steps are computed as CUDA graphs
    pixels: int = 0  #: image: of one image as it is usually asked for
    offload: str = "none"  #: image: what lies in host memory while unused: one of OFFLOADS
    claimed_bytes: int | None = None  #: of a model without weights: what it takes, exactly
    context_bytes: int | None = None  #: of a card, as it was measured; None: not yet
    prefix_ram_bytes: int = 0  #: text: of RAM for prefixes that leave the cache
    lora_numbers: int = 0  #: text: of LoRAs beside the weights


@dataclass(frozen=True, slots=True)
class Footprint:
    """Holds the bytes of a model by their use."""

    weights: int
    cache: int = 0
    activations: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.overhead


def estimate(manifest: Manifest, load_config: LoadConfig) -> Footprint:
    """Estimate the memory of a worker with this model on a device of that kind."""
    if load_config.claimed_bytes is not None:
        return Footprint(load_config.claimed_bytes)
    kind = "cuda" if load_config.device == "cuda" else "cpu"
    if manifest.kind == "image":
        return _of_image(manifest, load_config, kind)
    if manifest.kind in _SOUND_ROWS:
        return _of_sound(manifest, load_config, kind)
    if manifest.kind == "embedding":
        return _of_embedding(manifest, load_config, kind)
    weights = _weights(manifest, load_config, packed=_PACKED if kind == "cpu" else 1)
    if kind == "cpu":
        weights += manifest.weight_bytes
    if manifest.kind != "text":
        return Footprint(int(weights * _OTHERS), overhead=_overhead(load_config, kind))
    rows = load_config.max_batch or TEXT_ROWS
    return Footprint(
        weights=weights + load_config.lora_numbers * _lora_element(manifest, load_config),
        cache=_cache(manifest, load_config, kind, rows),
        activations=_LOGIT_COPIES * 4 * rows * (manifest.vocab_size or 0)
        + _step(manifest, load_config, kind),
        overhead=_overhead(load_config, kind)
        + _graphs(manifest, load_config, kind)
        + (load_config.prefix_ram_bytes if kind == "cpu" else 0),
    )


def _weights(manifest: Manifest, load_config: LoadConfig, *, packed: float) -> int:
    """Return the bytes of the weights as they are computed; ``packed``: what a layout of the
    device's own makes of those in full precision."""
    element = _element(manifest, load_config)
    if manifest.packed:
        return int(_four_bits(manifest, load_config) + _beside(manifest) * element * packed)
    if manifest.quantization is not None:
        if manifest.quantization not in WIDENED:
            return manifest.weight_bytes
        return int(manifest.parameters * element * packed)
    whole = manifest.weight_bytes * element / _stored(manifest) * packed
    if load_config.quantization is None or not manifest.linear_parameters:
        return int(whole)
    small = FORMATS[load_config.quantization]
    quantized = manifest.linear_parameters * small.parameter_bytes
    rest = manifest.weight_bytes * element / _stored(manifest)
    rest -= manifest.linear_parameters * element
    return int(quantized + manifest.linear_rows * small.row_bytes + max(0.0, rest) * packed)


def _four_bits(manifest: Manifest, load_config: LoadConfig) -> int:
    """Return the bytes of the layers that come in 4 bits, as the text engine stores them again."""
    packed = load_config.device != "cuda" and _element(manifest, load_config) == _HALF
    return sum(
        each.count
        * four_bit_bytes(
            each.outs,
            each.ins,
            each.groups,
            scale_bytes=each.scale_bytes,
            ordered=each.ordered,
            packed=packed,
        )
        for each in manifest.packed
    )


def _beside(manifest: Manifest) -> int:
    """Return the parameters that are not in layers of 4 bits."""
    return manifest.parameters - sum(e.count * e.outs * e.ins for e in manifest.packed)


def _overhead(load_config: LoadConfig, kind: str) -> int:
    context = (load_config.context_bytes or CONTEXT_BYTES) if kind == "cuda" else 0
    return context + _PROCESS[kind]


def _graphs(manifest: Manifest, load_config: LoadConfig, kind: str) -> int:
    if not load_config.graphs or kind != "cuda":
        return 0
    layers = _layers(manifest)
    return int(_GRAPHS * layers * _GRAPH_LAYER) if layers else _UNKNOWN_GRAPHS


def _step(manifest: Manifest, load_config: LoadConfig, kind: str) -> int:
    """Return what the largest step of prompts computes at once: a layer's outputs, and as much
    again of the residual, norms and copies."""
    layers = _layers(manifest)
    if not layers:
        return 0
    outputs = manifest.linear_rows / layers
    return int(1.4 * TEXT_STEP_TOKENS[kind] * outputs * _element(manifest, load_config))


def _layers(manifest: Manifest) -> float:
    """Return about how many layers a text model has, by the shapes of its projections; 0 if these
    are not known."""
    if not manifest.linear_parameters:
        return 0
    width = manifest.linear_parameters / manifest.linear_rows
    return manifest.linear_rows / (_LAYER_WIDTHS * width)


def cache_bytes_per_token(manifest: Manifest, load_config: LoadConfig) -> int:
    """Return the bytes of one token in the KV cache, over all layers; 0 if they are not known."""
    element = 1 if load_config.kv_cache_dtype == "fp8" else _element(manifest, load_config)
    return (manifest.kv_bytes_per_token or 0) * element // 2


def _of_embedding(manifest: Manifest, load_config: LoadConfig, kind: str) -> Footprint:
    """Add up weights in the dtype of the computation, and what a pass takes beside them; packed
    weights take the place of the mapped ones."""
    halved = min(2, _stored(manifest)) if kind == "cuda" else 4
    element = _BYTES.get(load_config.dtype or "", halved)
    weights = manifest.weight_bytes * element // _stored(manifest)
    passes = EMBEDDING_STEP_TOKENS[kind] * _EMBEDDING_TOKEN_BYTES * element
    activations = min(passes, max(weights, _ACTIVATIONS))
    return Footprint(weights, activations=activations, overhead=_overhead(load_config, kind))


def _of_sound(manifest: Manifest, load_config: LoadConfig, kind: str) -> Footprint:
    """Add up weights in the dtype of the computation, and caches of a fixed size for each row."""
    halved = kind == "cuda" and manifest.model_type in ("bark", "whisper")
    element = _BYTES.get(load_config.dtype or "", 2 if halved else 4)
    row = manifest.cache_positions * (manifest.kv_bytes_per_token or 0) * element // 2
    rows = load_config.max_batch or _SOUND_ROWS[manifest.kind]
    if manifest.kind == "speech" and row:
        grant = (
            SPEECH_CACHE_BYTES[kind]
            if load_config.kv_cache_bytes is None
            else load_config.kv_cache_bytes
        )
        rows = min(rows, max(1, grant // row))
    weights = manifest.weight_bytes * element // _stored(manifest)
    return Footprint(
        weights=weights,
        cache=rows * row,
        activations=min(weights, _ACTIVATIONS),
        overhead=_overhead(load_config, kind),
    )


def _of_image(manifest: Manifest, load_config: LoadConfig, kind: str) -> Footprint:
    """Add up the weights that offload leaves on the device, and the larger of the peaks of denoiser
    and decoder; the decoder takes one image at a time. On a CPU
    the heap keeps what the denoiser gave back, so there the two add up."""
    element = _image_element(manifest, load_config, kind)
    parts = image_parts(manifest, load_config)
    group = int(_GROUP_PART * max(parts)) + _decoder_bytes(manifest, parts)
    weights = {"none": sum(parts), "model": max(parts)}.get(load_config.offload, group)
    images = load_config.max_batch or IMAGE_BATCH
    latents = images * _ROWS_PER_IMAGE * load_config.pixels // _PIXELS_PER_LATENT
    denoiser = _DENOISER_COPIES * latents * manifest.denoiser_width * element
    decoder = _DECODER_COPIES * load_config.pixels * manifest.decoder_width * element
    peak = denoiser + decoder if load_config.device == "cpu" else max(denoiser, decoder)
    return Footprint(weights, activations=peak, overhead=_overhead(load_config, kind))


def _decoder_bytes(manifest: Manifest, parts: list[int]) -> int:
    """Return the bytes of the decoder, which group offload leaves on the device."""
    return dict(zip(manifest.components, parts, strict=False)).get("vae", 0)


def image_parts(manifest: Manifest, load_config: LoadConfig, *, stored: bool = False) -> list[int]:
    """Return the bytes of each of the pipeline's models as computed, or as ``stored``."""
    sizes = list(manifest.components.values()) or [manifest.weight_bytes]
    if stored:
        return sizes
    kind = "cuda" if load_config.device == "cuda" else "cpu"
    element = _image_element(manifest, load_config, kind)
    return [size * element // _stored(manifest) for size in sizes]


def _image_element(manifest: Manifest, load_config: LoadConfig, kind: str) -> int:
    """Return the bytes of a number as the image engine chooses: float32 on a CPU; on a card float32
    becomes bfloat16."""
    if load_config.dtype is not None:
        return _BYTES.get(load_config.dtype, 2)
    return 4 if kind == "cpu" else min(2, _stored(manifest))


def cache_grant(
    wanted: int | None, manifest: Manifest, kind: str, devices: Iterable[Device]
) -> int | None:
    """Return the budget of a text model's KV cache: what is ``wanted``, or on large cards a part of
    the smallest of them; None leaves it to the engine."""
    if wanted is not None or kind != "cuda" or manifest.kind != "text":
        return wanted
    smallest = min((each.memory_bytes for each in devices if each.kind == kind), default=0)
    part = smallest // _CACHE_PART
    return part if part > TEXT_CACHE_BYTES[kind] else None


def _cache(manifest: Manifest, load_config: LoadConfig, kind: str, rows: int) -> int:
    """Return the budget of the cache, but never more than all rows at their longest need."""
    grant = (
        TEXT_CACHE_BYTES[kind] if load_config.kv_cache_bytes is None else load_config.kv_cache_bytes
    )
    known = [n for n in (load_config.max_context, manifest.max_context) if n]
    each = cache_bytes_per_token(manifest, load_config)
    return min(grant, rows * min(known) * each) if known and each else grant


def _element(manifest: Manifest, load_config: LoadConfig) -> int:
    """Return the bytes of a number as it will be computed; float16 becomes bfloat16 on a CPU, and
    text models stored in float32 run in half precision on a card."""
    own = _BYTES.get(own_dtype(manifest) or "", 2)
    if manifest.kind == "text" and load_config.device == "cuda":
        own = min(2, own)
    return _BYTES.get(load_config.dtype or "", own)


def _lora_element(manifest: Manifest, load_config: LoadConfig) -> int:
    """Return the bytes of a number of a LoRA: on a CPU they are in full precision."""
    return _element(manifest, load_config) if load_config.device == "cuda" else 4


def own_dtype(manifest: Manifest) -> str | None:
    """Return the number format that a model asks for: a text model's config may name another one
    than most of its weights have."""
    return (manifest.kind == "text" and manifest.config_dtype) or manifest.dtype


def bytes_by_dtype(manifest: Manifest, load_config: LoadConfig) -> dict[str, int]:
    """Return the memory that a model would take in each number format that can be set for it."""
    if load_config.claimed_bytes is not None:
        return {}
    each = {name: replace(load_config, dtype=name) for name in DTYPE_BYTES}
    return {name: estimate(manifest, changed).total for name, changed in each.items()}


def bytes_by_quantization(manifest: Manifest, load_config: LoadConfig) -> dict[str, int]:
    """Return the memory that a text model would take in each format that it can be quantised to.

    Nothing for one that comes quantised, and for kinds that are not quantised.
    """
    if not manifest.linear_parameters or load_config.claimed_bytes is not None:
        return {}
    each = {name: replace(load_config, quantization=name) for name in FORMATS}
    return {name: estimate(manifest, changed).total for name, changed in each.items()}


def _stored(manifest: Manifest) -> int:
    return _BYTES.get(manifest.dtype or "", 2)
