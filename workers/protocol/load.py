"""Declares the first messages to a worker: what to import, then which model to load, and how."""

from typing import Literal

import msgspec

DeviceKind = Literal["cpu", "cuda"]


ConfineMode = Literal["auto", "require", "off"]


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """Says how the gateway wants a worker confined. Holds paths of secrets, but none of them."""

    mode: ConfineMode
    inputs: str  #: the folder of uploads: a worker reads those whose names it is told
    caches: str  #: the folder of compilers' caches, one for each model
    hidden: tuple[str, ...] = ()  #: paths that no rule for the system or for Python may cover
    memory_bytes: int | None = None  #: bound on a CPU worker's memory


class Import(msgspec.Struct, tag="import", frozen=True, kw_only=True):
    """Import modules: the first message to every process, which answers with Imported."""

    gateway: int  #: process id
    modules: tuple[str, ...]
    confinement: Confinement | None = None
    folder: str | None = None  #: the only folder that it may write to, once confined
    lending: int | None = None  #: the descriptor of a socket through which it may be lent memory


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sets the behaviour that the fake engine pretends (``models.<name>.fake.*``)."""

    load_seconds: float = 0.0
    tokens_per_second: float = 0.0  #: per request; 0 is as fast as it can
    memory_bytes: int = 0
    batch_size: int = 64
    #: obey prompts that begin with !crash, !hang, !oom, !slow, !garbage, !raise
    faults: bool = False
    #: what loading does instead: crash, device (it meets a lost card), error, garbage, hang, kill
    #: (as the kernel does it), oom
    load_fault: str | None = None


class ImageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sets the image engine's options for a pipeline (``models.<name>.image.*``)."""

    #: what lies in host memory while unused: none, model, group or group_low_ram
    offload: str = "none"
    compile: bool = False  #: compile the blocks of the denoiser, with a warm-up at load
    step_cache: str = "none"  #: skip what changes little between steps: none or first_block
    loras: dict[str, str] = {}  #: LoRA files by name
    own_lora: str | None = None  #: the one of those that is on where a job does not name it
    width: int = 1024  #: of an image as it is usually asked for, in pixels
    height: int = 1024


#: How a family of models writes reasoning and calls of tools; see engines/text/parsing/families.
ResponseFormatName = Literal[
    "cohere",
    "deepseek",
    "deepseek_dsml",
    "function_gemma",
    "gemma",
    "glm",
    "gpt_oss",
    "granite",
    "hermes",
    "kimi",
    "lfm",
    "llama_json",
    "llama_python",
    "minimax",
    "mistral",
    "none",
    "qwen_xml",
    "think",
]


#: How single tokens read the paged cache: by a copy of their pages, or by a kernel, in place.
Attention = Literal["sdpa", "triton"]
Overlap = Literal["auto", "on", "off"]
Graphs = Literal["off", "lazy", "warmup"]


#: What the paged cache holds: numbers in the model's format, or of 8 bits (float8 e4m3).
CacheFormat = Literal["auto", "fp8"]

#: How tokens are drafted, to be verified several in a step: not, or by what the text said before.
SpeculationKind = Literal["off", "lookup"]

MOST_DRAFTS = 16  #: tokens of a row in a step

MOST_LORAS, MOST_LORA_RANK = 64, 512  #: of a worker; of each

#: Formats that a text model's linear layers are quantised to at load; bitsandbytes makes llm_int8
#: and nf4. See ``workers.engines.quantization``.
Quantization = Literal["int8", "fp8", "llm_int8", "nf4"]


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sets the text engine's options for a model (``models.<name>.text.*``)."""

    response_template: ResponseFormatName | None = None  #: None: as the model's files say
    attention: Attention = "sdpa"
    overlap: Overlap = "auto"
    graphs: Graphs = "off"
    kv_cache_dtype: CacheFormat = "auto"
    speculation: SpeculationKind = "off"
    draft_tokens: int = 8  #: of a row in a step, at most
    prefix_ram_bytes: int = 0  #: of RAM for prefixes that leave the cache
    max_loras: int = 0  #: held beside the weights at once, for jobs that name one
    max_lora_rank: int = 64
    lora_folder: str = ""  #: that holds the files of LoRAs which jobs may name
    source_language: str | None = None  #: of prompts to translate; None: as the files say
    target_language: str | None = None


class SpeechOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Names the files that a speech model needs beside its own (``models.<name>.speech.*``)."""

    vocoder: str | None = None  #: the folder of the model that makes spectrograms sound
    voices: dict[str, str] = {}  #: files of speaker vectors by name


class Load(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """Tells a worker which model to become. Holds no secret."""

    model: str
    engine: str  #: a key of ``workers.engines.registry.ENGINES``
    path: str
    adapter: str | None = None  #: text: the folder of a LoRA to merge into the weights
    node: str = ""  #: whose worker it becomes, of a cluster; none: of the gateway's machine
    #: bytes that are reserved, by device, and of RAM beside those: a node grants them
    reserves: dict[str, int] = {}
    ram: int = 0
    device: DeviceKind = "cpu"
    visible_devices: str = ""  #: CUDA_VISIBLE_DEVICES for this worker
    #: bytes of weights that each visible device may hold, in their order; none: as they have room
    device_weights: tuple[int, ...] = ()
    even_split: bool = True  #: those are equal; else each device but the last is to be filled
    context_bytes: int | None = None  #: of a card, as it was measured; None: not yet
    dtype: str | None = None  #: None: the files' own, where the device computes it well
    quantization: Quantization | None = None  #: None: the weights stay as they come
    max_context: int | None = None  #: None: the model's own
    kv_cache_bytes: int | None = None  #: None: the engine's default for the device
    max_batch: int | None = None
    threads: int | None = None  #: CPU threads; None: by the model's size
    image: ImageOptions | None = None
    speech: SpeechOptions | None = None
    text: TextOptions | None = None
    warmup: bool | None = None  #: compute the largest shapes once; None: text models on a card
    heartbeat_seconds: float = 1.0
    fake: FakeOptions | None = None
