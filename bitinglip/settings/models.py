"""Declares the settings of one model, under ``models.<name>`` in config.yaml."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bitinglip.settings.sections import Bytes, KeepAlive, Seconds, Section
from bitinglip.settings.upstream import Upstream
from workers.protocol import (
    MOST_DRAFTS,
    MOST_LORA_RANK,
    MOST_LORAS,
    Attention,
    CacheFormat,
    Graphs,
    Overlap,
    Quantization,
    ResponseFormatName,
    SpeculationKind,
)

UPSTREAM = "upstream"  #: the engine of models that other servers answer for

Language = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{1,31}$")]
Balancing = Literal["least_work", "round_robin", "weighted", "sticky"]


class SamplingDefaults(Section):
    """Fills in what a request leaves open, before the API's own defaults do."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="default maximum tokens of an answer; null uses the API's default"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="default sampling temperature; 0 is greedy; null uses the API's default"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="default nucleus sampling threshold; null uses the API's default"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="default number of likeliest tokens to sample from; null is all"
    )


class TextModel(Section):
    """Sets how a text model reads prompts, and how its answers are read."""

    response_template: ResponseFormatName | None = Field(
        None,
        description="format in which the model writes reasoning and tool calls; none leaves them "
        "in the text; null follows the model's files",
    )
    attention: Attention = Field(
        "sdpa",
        description="how decode steps on a card read the KV cache: sdpa copies its pages first; "
        "triton reads them in place by a kernel (compute capability 8.0, or 7.5 in float16), and "
        "prompts by torch's attention of ragged batches, which was not measured on a card yet",
    )
    overlap: Overlap = Field(
        "auto",
        description="queue each step of all answers before the tokens of the one before are known, "
        "so that a card does not wait for the host: on, off, or auto, which does so on cards only; "
        "steps with answers that are held to a grammar never overlap; with speculation, and for "
        "models that compute each answer by itself, on is refused",
    )
    graphs: Graphs = Field(
        "off",
        description="compute steps of single tokens as CUDA graphs, which a card is given whole "
        "and not operation by operation: lazy captures one for each size when it is first needed, "
        "warmup all of them at load; off; they take a few hundred megabytes of the card, and have "
        "not been measured on one yet",
    )
    speculation: SpeculationKind = Field(
        "off",
        description="verify several tokens of an answer in one step: lookup drafts them from what "
        "the prompt and the answer said before, which is quicker where answers quote, edit or "
        "repeat; answers with penalties or a grammar are made as usual; off",
    )
    draft_tokens: Annotated[int, Field(ge=1, le=MOST_DRAFTS)] = Field(
        8, description="maximum tokens that speculation drafts for an answer in one step"
    )
    kv_cache_dtype: CacheFormat = Field(
        "auto",
        description="number format of the KV cache: auto is the model's own; fp8 (e4m3) keeps "
        "twice the tokens of a 16-bit format in the same memory, rounded to 4 significant bits",
    )
    prefix_cache: Literal["key", "shared", "off"] = Field(
        "key",
        description="compute the common beginning of prompts once: for requests of the same API "
        "key, or shared by all keys, whose answers' times then tell that another key has sent the "
        "same beginning; or off",
    )
    prefix_ram_bytes: Bytes = Field(
        0,
        description="RAM in bytes, of each replica, that keeps the beginnings of prompts when they "
        "leave the KV cache, to be copied back where they are found again; 0 is none",
    )
    max_loras: Annotated[int, Field(ge=0, le=MOST_LORAS)] = Field(
        8,
        description="maximum LoRAs of this model that a worker of it holds beside its weights, to "
        "compute requests for them and for the model together; the least used leaves for another; "
        "0 gives each LoRA a worker of its own, with a copy of the weights that it is merged into",
    )
    max_lora_rank: Annotated[int, Field(ge=1, le=MOST_LORA_RANK)] = Field(
        64,
        description="maximum rank of a LoRA that is computed beside its model's weights; one of a "
        "higher rank has a worker of its own",
    )
    merge_lora: bool = Field(
        False,
        description="of a model that is a LoRA: merge it into a copy of its base's weights in a "
        "worker of its own, which answers a little quicker and takes the memory of the base again; "
        "any other setting of a LoRA's worker (device, max_batch, pin) has it merged, too",
    )
    source_language: Language | None = Field(
        None,
        description="language of the prompts of a model that translates, by the code of its "
        "tokenizer (eng_Latn for NLLB, en_XX for mBART); null is the tokenizer's own",
    )
    target_language: Language | None = Field(
        None,
        description="language that a model answers in that translates, by the code of its "
        "tokenizer (fra_Latn for NLLB, fr_XX for mBART); null is as the model's files say",
    )


class ImageModel(Section):
    """Sets how an image model runs, and fills in what its requests leave open."""

    width: Annotated[int, Field(ge=8)] | None = Field(
        None, description="default width of an image in pixels; null is the model's own, else 1024"
    )
    height: Annotated[int, Field(ge=8)] | None = Field(
        None, description="default height of an image in pixels; null is the model's own, else 1024"
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="default denoising steps; null is 50"
    )
    guidance_scale: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="default guidance scale; null is 7.5, or the pipeline's own",
    )
    scheduler: str | None = Field(None, description="default scheduler; null uses the model's own")
    metadata: bool = Field(True, description="write the generation parameters into the image files")
    max_megapixels: Annotated[float, Field(gt=0)] | None = Field(
        None, description="maximum megapixels per image; null uses limits.images"
    )
    offload: Literal["auto", "none", "model", "group", "group_low_ram"] = Field(
        "auto",
        description="CPU offload: none, model, group (twice the weights in RAM) or group_low_ram "
        "(once, slower); auto offloads only what does not fit",
    )
    compile: bool = Field(
        False, description="compile the denoiser with torch.compile; loading takes minutes longer"
    )
    step_cache: Literal["none", "first_block"] = Field(
        "none",
        description="step cache: first_block skips blocks that change little; lowers fidelity",
    )
    loras: dict[str, str] = Field(
        {}, description="LoRA files (safetensors) by the names used in requests"
    )
    default_loras: dict[str, float] = Field(
        {}, description="LoRAs and their scales applied when a request names none"
    )

    @model_validator(mode="after")
    def _defaults_are_there(self) -> Self:
        if unknown := sorted(set(self.default_loras) - set(self.loras)):
            raise ValueError(f"default_loras names {unknown[0]!r}, which loras does not")
        return self


class SpeechModel(Section):
    """Fills in what requests for speech leave open; says what a model needs beside its files."""

    voice: str | None = Field(
        None, description="default voice; null uses the model without a voice"
    )
    language: str | None = Field(
        None, description="default language of a voice that is named without one"
    )
    metadata: bool = Field(
        True,
        description="mark the audio files as machine-generated in their metadata (aac has none)",
    )
    voice_aliases: dict[str, str] = Field(
        {},
        description="further names of the model's voices, such as alloy: v2/en_speaker_6; OpenAI's "
        "names that are not among them stand for the model's voices in order",
    )
    vocoder: str | None = Field(
        None, description="vocoder of a SpeechT5 model: the name of a model in the store"
    )
    voices: dict[str, str] = Field(
        {},
        description="speaker vectors (.npy) of a SpeechT5 model by the names used in requests",
    )


class EmbeddingModel(Section):
    """Fills in what requests for embeddings leave open."""

    truncate: bool = Field(
        False,
        description="embed the beginning of texts that are longer than the model reads, unless the "
        "request says otherwise; false refuses them",
    )


class TranscriptionModel(Section):
    voice_activity: bool = Field(
        True,
        description="leave out words that the model makes up where nothing sounds like a voice: "
        "silence, hum, steady noise",
    )


class Fake(Section):
    load_seconds: Seconds = Field(0, description="seconds that loading takes")
    tokens_per_second: Annotated[float, Field(ge=0)] = Field(
        0, description="tokens per second per request; 0 is unlimited"
    )
    memory_bytes: Bytes = Field(0, description="device memory in bytes that the engine claims")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="maximum requests run at once")
    faults: bool = Field(False, description="obey fault prompts such as !crash and !hang")
    load_fault: Literal["crash", "device", "error", "garbage", "hang", "kill", "oom"] | None = (
        Field(None, description="how loading fails, if faults is true; null loads normally")
    )

    @model_validator(mode="after")
    def _faults_are_allowed(self) -> Self:
        if self.load_fault is not None and not self.faults:
            raise ValueError("load_fault needs faults: true")
        return self


class Model(Section):
    """Holds the settings of one model, under models.<name>."""

    engine: str | None = Field(
        None, description="engine that runs the model; null detects it from the files"
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None,
        description="number format of the weights; null follows the files and the device",
    )
    quantization: Quantization | None = Field(
        None,
        description="quantise a text model's linear layers at load, to 8 bits (int8; fp8, for "
        "cards of compute capability 8.9 or more; llm_int8, which needs the package bitsandbytes) "
        "or to 4 (nf4, which needs it too); null leaves the weights as they come",
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="device kind; null prefers cuda over cpu"
    )
    max_context: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum tokens of prompt and answer together; null uses the model's own"
    )
    kv_cache_bytes: Bytes | None = Field(
        None,
        description="memory budget in bytes of the KV cache; null is for text 512 MiB on a CPU, "
        "and on a card 4 GiB or an eighth of the card if that is more, for speech 2 and 4 GiB",
    )
    max_batch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum requests run at once; null uses the engine's default"
    )
    allow_pickles: bool = Field(
        False, description="convert weights that come as pickles only, on pull or import"
    )
    warmup: bool | None = Field(
        None,
        description="compute the largest shapes once at load, so that their memory is known: text "
        "and image models; null does it for text on a card",
    )
    preload: bool = Field(False, description="load the model when the server starts")
    pin: bool = Field(
        False, description="never evict or unload the model, however long it is unused"
    )
    keep_alive: KeepAlive | None = Field(
        None,
        description="idle time after which the model is unloaded: seconds, 30m, or forever (until "
        "its memory is needed); null uses residency.keep_alive",
    )
    replicas: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="maximum workers that run the model at once, as far as memory allows"
    )
    balancing: Balancing = Field(
        "least_work", description="load balancing: least_work, round_robin, weighted or sticky"
    )
    sampling: SamplingDefaults = Field(
        SamplingDefaults(), description="sampling defaults of the model's requests"
    )
    text: TextModel = Field(TextModel(), description="settings of a text model")
    image: ImageModel = Field(ImageModel(), description="settings of an image model")
    speech: SpeechModel = Field(SpeechModel(), description="settings of a speech model")
    transcription: TranscriptionModel = Field(
        TranscriptionModel(), description="settings of a transcription model"
    )
    embedding: EmbeddingModel = Field(
        EmbeddingModel(), description="settings of an embedding model"
    )
    upstream: Upstream = Field(
        Upstream(), description="servers that answer for the model, in place of files here"
    )
    fake: Fake = Field(Fake(), description="settings of the fake engine")

    def claimed_bytes(self, detected: str) -> int | None:
        """Return the memory that a model without weights takes; None: its files tell.

        ``detected``: the engine that its files are for.
        """
        return {"fake": self.fake.memory_bytes, UPSTREAM: 0}.get(self.engine or detected)

    @model_validator(mode="before")
    @classmethod
    def _upstream_is_an_engine(cls, given: Any) -> Any:
        """Have a model that other servers answer for take nothing of the devices here."""
        upstream = given.get("upstream") if isinstance(given, dict) else None
        url = upstream.get("url") if isinstance(upstream, dict) else upstream
        if not url:
            return given
        return {**given, "engine": given.get("engine") or UPSTREAM, "device": "cpu"}

    @model_validator(mode="after")
    def _upstream_is_the_engine(self) -> Self:
        if self.engine == UPSTREAM and not self.upstream.url:
            raise ValueError("upstream.url is missing")
        if self.engine != UPSTREAM and self.upstream.url:
            raise ValueError("engine must be left out where upstream.url names other servers")
        return self
