"""Every setting: name, type, default and one line of help. Loading them is layers.py's work.

``config.yaml`` at the repository's root shows the same list; a test holds the two together, and
another that each setting is read by somebody.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
Balancing = Literal["least_work", "round_robin", "weighted", "sticky"]

_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?) ?([smhd])", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """``10m`` is 600 seconds; everything else is left to the field."""
    match = _SPAN.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * _UNITS[match[2]] if match else value


#: how long something unused is kept: seconds, a span such as 30m, or forever
KeepAlive = Annotated[Seconds | Literal["forever"], BeforeValidator(_seconds)]


class Server(Section):
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="port to listen on; 0 takes a free one")
    max_body_bytes: Bytes = Field(10_485_760, description="largest JSON body")
    max_upload_bytes: Bytes = Field(104_857_600, description="largest form with files")
    drain_timeout: Seconds = Field(30, description="seconds that running requests get at shutdown")
    allowed_hosts: list[str] = Field(
        [], description="further names the Host header may hold, beside loopback and the bound one"
    )
    cors_origins: list[str] = Field([], description="web origins that may call the API")
    tls_cert: str | None = Field(None, description="certificate file (PEM); turns HTTPS on")
    tls_key: str | None = Field(None, description="its key file (PEM)")
    request_timeout: Seconds = Field(
        600, description="seconds a request may take, waiting included"
    )

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both, or neither")
        return self


class Security(Section):
    require_api_key: bool = Field(True, description="refuse requests without a valid key")
    allow_insecure: bool = Field(
        False, description="allow binding other than loopback while keys are not required"
    )


class Workers(Section):
    heartbeat_timeout: Annotated[float, Field(ge=1)] = Field(
        30, description="seconds of silence before a worker is killed"
    )
    load_timeout: Seconds = Field(600, description="seconds a model may take to load")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="crashes within restart_window before a model is given up"
    )
    restart_window: Seconds = Field(60, description="seconds; see max_restarts")
    spare: bool = Field(
        True, description="keep one process with the libraries imported, for quick loads"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="CPU threads of one worker; null is one per core"
    )


class FakeDevice(Section):
    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="what it is called", examples=["card"]
    )
    memory_bytes: Annotated[int, Field(gt=0)] = Field(
        description="memory it pretends to have", examples=[85_899_345_920]
    )


class Devices(Section):
    fake: list[FakeDevice] = Field(
        [], description="made-up devices in place of the machine's, for tests and simulation"
    )
    cpu_memory_bytes: Annotated[int, Field(gt=0)] | None = Field(
        None, description="memory that models on the CPU may take; null is 80 % of RAM"
    )
    headroom_bytes: Bytes = Field(
        268_435_456, description="kept free on every accelerator, for the driver and fragmentation"
    )
    page_cache_bytes: Bytes | None = Field(
        None, description="RAM for the files of unloaded models; null is a quarter, 0 is none"
    )


class Queue(Section):
    max_waiting: Annotated[int, Field(ge=0)] = Field(
        256, description="requests that may wait for one model; more are refused"
    )
    ageing: Annotated[float, Field(gt=0)] = Field(
        10, description="seconds without service after which a request rises by one level"
    )


class ResidencyRules(Section):
    keep_alive: KeepAlive = Field(
        1800, description="unload a model that was unused for so long: seconds, 30m, or forever"
    )
    min_seconds: Seconds = Field(
        20,
        description="a loaded model in use keeps its place for so long, or 4 x its load time",
    )
    patience: Seconds = Field(
        15, description="seconds that requests wait before a model in use is drained for them"
    )


_TIER_PRIORITY = "higher tiers go first; under load lower ones give up their limits first"
_TIER_WEIGHT = "a key's part of the machine among keys of the same priority"


class Tier(Section):
    """What a key's tier is worth in the queues."""

    priority: Annotated[int, Field(ge=0, le=100)] = Field(0, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(1, description=_TIER_WEIGHT)
    max_queue: Annotated[int, Field(ge=0)] | None = Field(
        None, description="requests of one key that may wait; null is no limit of its own"
    )
    max_megapixels: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of one request's images together; null is no limit of its own"
    )
    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of one text to say; null is limits.speech's"
    )
    max_audio_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of one sound to write down; null is limits.transcription's"
    )
    max_audio_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of its file; null is server.max_upload_bytes"
    )


class Pro(Tier):
    priority: Annotated[int, Field(ge=0, le=100)] = Field(1, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(4, description=_TIER_WEIGHT)


class Enterprise(Tier):
    priority: Annotated[int, Field(ge=0, le=100)] = Field(2, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(16, description=_TIER_WEIGHT)


class Operator(Tier):
    priority: Annotated[int, Field(ge=0, le=100)] = Field(3, description=_TIER_PRIORITY)
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(16, description=_TIER_WEIGHT)


class Tiers(Section):
    free: Tier = Tier()
    pro: Pro = Pro()
    enterprise: Enterprise = Enterprise()
    operator: Operator = Operator()


class ImageLimits(Section):
    """What one request for images may ask for; sides in pixels."""

    min_side: Annotated[int, Field(ge=8)] = Field(64, description="least width and height")
    max_side: Annotated[int, Field(ge=8)] = Field(2048, description="greatest width and height")
    max_steps: Annotated[int, Field(ge=1)] = Field(150, description="steps of one image")
    max_images: Annotated[int, Field(ge=1, le=64)] = Field(8, description="images of one request")
    max_guidance: Annotated[float, Field(ge=0)] = Field(50, description="guidance_scale")


class SpeechLimits(Section):
    max_characters: Annotated[int, Field(ge=1)] = Field(
        4096, description="longest text of one request"
    )


class TranscriptionLimits(Section):
    max_seconds: Annotated[float, Field(gt=0)] = Field(
        14_400, description="longest sound of one request"
    )
    max_channels: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="of a file; they become one"
    )
    max_sample_rate: Annotated[int, Field(ge=8000)] = Field(
        768_000, description="of a file, in samples a second"
    )


class Limits(Section):
    tiers: Tiers = Tiers()
    images: ImageLimits = ImageLimits()
    speech: SpeechLimits = SpeechLimits()
    transcription: TranscriptionLimits = TranscriptionLimits()


class Files(Section):
    retention: Annotated[float, Field(ge=1)] | None = Field(
        None, description="seconds that a made image can be fetched; null is tasks.retention"
    )
    max_bytes: Bytes = Field(
        21_474_836_480, description="disk for made images; beyond it the oldest are removed"
    )


class Tasks(Section):
    retention: Annotated[float, Field(ge=1)] = Field(
        86_400, description="seconds that an ended task can still be asked about"
    )


class Hub(Section):
    endpoint: str | None = Field(None, description="a mirror of the hub; null is the hub itself")
    token_file: str | None = Field(None, description="file with the hub token; else HF_TOKEN")
    offline: bool = Field(False, description="never ask the hub")


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level written"
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto is console on a terminal, else JSON lines"
    )


class SamplingDefaults(Section):
    """What a request leaves open is taken from here, then from the API's own defaults."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="longest answer, in tokens"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="how freely tokens are drawn; 0 takes the likeliest"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="draw from the likeliest tokens that make up this share"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="draw from this many of the likeliest tokens"
    )


class ImageModel(Section):
    """How an image model runs, and what its requests mean that leave these open."""

    width: Annotated[int, Field(ge=8)] | None = Field(None, description="null is 1024")
    height: Annotated[int, Field(ge=8)] | None = Field(None, description="null is 1024")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="null is 50")
    guidance_scale: Annotated[float, Field(ge=0)] | None = Field(
        None, description="null is 7.5 for Stable Diffusion, the pipeline's own for others"
    )
    scheduler: str | None = Field(None, description="null is the model's own")
    metadata: bool = Field(True, description="write the parameters into the image files")
    max_megapixels: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of one image; null is what limits.images allows"
    )
    offload: Literal["auto", "none", "model", "group"] = Field(
        "auto", description="what waits in RAM instead of on the card; auto is as little as fits"
    )
    compile: bool = Field(False, description="compile the denoiser; loads take minutes longer")
    step_cache: Literal["none", "first_block"] = Field(
        "none", description="skip what changes little between steps; images change a little"
    )
    loras: dict[str, str] = Field(
        {}, description="LoRA files (safetensors) by the names that requests use"
    )
    default_loras: dict[str, float] = Field(
        {}, description="names and scales of those that requests have that name none"
    )

    @model_validator(mode="after")
    def _defaults_are_there(self) -> Self:
        if unknown := sorted(set(self.default_loras) - set(self.loras)):
            raise ValueError(f"default_loras names {unknown[0]!r}, which loras does not")
        return self


class SpeechModel(Section):
    """What requests for speech mean that leave these open; what a model needs beside its files."""

    voice: str | None = Field(None, description="one of the model's own; null is none")
    language: str | None = Field(None, description="where the voice does not say it")
    metadata: bool = Field(True, description="label the files as made by a machine")
    vocoder: str | None = Field(
        None, description="SpeechT5: the model of the store that makes its spectrograms sound"
    )
    voices: dict[str, str] = Field(
        {}, description="SpeechT5: files of speaker vectors (.npy) by the names that requests use"
    )


class Fake(Section):
    load_seconds: Seconds = Field(0, description="time that loading takes")
    tokens_per_second: Annotated[float, Field(ge=0)] = Field(
        0, description="speed; 0 is as fast as it can"
    )
    memory_bytes: Bytes = Field(0, description="device memory it claims")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="requests it runs at once")
    faults: bool = Field(False, description="obey prompts such as !crash and !hang")
    load_fault: Literal["crash", "hang", "oom", "garbage", "error"] | None = Field(
        None, description="what loading ends in, if faults is true"
    )

    @model_validator(mode="after")
    def _faults_are_allowed(self) -> Self:
        if self.load_fault is not None and not self.faults:
            raise ValueError("load_fault needs faults: true")
        return self


class Model(Section):
    """Settings of one model, under models.<name>."""

    engine: str | None = Field(None, description="engine; null is what the files say")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="number format of the weights; null is the files' own"
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="null is cuda where there is one"
    )
    max_context: Annotated[int, Field(ge=1)] | None = Field(
        None, description="longest prompt and answer together, in tokens"
    )
    kv_cache_bytes: Bytes | None = Field(None, description="memory for the attention cache")
    max_batch: Annotated[int, Field(ge=1)] | None = Field(None, description="requests run at once")
    allow_pickles: bool = Field(
        False, description="when it is pulled or imported with pickles only, convert these"
    )
    preload: bool = Field(False, description="load at start")
    pin: bool = Field(False, description="never evict it for another model, nor when unused")
    keep_alive: KeepAlive | None = Field(None, description="null is residency.keep_alive")
    replicas: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="workers that run it at once, as far as there is room"
    )
    balancing: Balancing = Field(
        "least_work", description="how its replicas share: also round_robin, weighted, sticky"
    )
    sampling: SamplingDefaults = Field(SamplingDefaults(), description="defaults for its requests")
    image: ImageModel = Field(ImageModel(), description="how an image model runs")
    speech: SpeechModel = Field(SpeechModel(), description="how a speech model speaks")
    fake: Fake = Field(Fake(), description="what the fake engine pretends")


class Settings(Section):
    server: Server = Server()
    security: Security = Security()
    workers: Workers = Workers()
    devices: Devices = Devices()
    queue: Queue = Queue()
    residency: ResidencyRules = ResidencyRules()
    limits: Limits = Limits()
    tasks: Tasks = Tasks()
    files: Files = Files()
    hub: Hub = Hub()
    logging: Logging = Logging()
    demo: Literal["auto", "always", "never"] = Field(
        "auto",
        description="make the small demo models: when the store is empty, at each start, never",
    )
    models: dict[str, Model] = Field({}, description="per-model settings, by model name")

    def model(self, name: str) -> Model:
        return self.models.get(name, Model())

    def keep_alive(self, name: str) -> float | None:
        """Seconds for which an unused model stays loaded; None: until its memory is needed."""
        own = self.model(name)
        kept = self.residency.keep_alive if own.keep_alive is None else own.keep_alive
        return None if own.pin or kept == "forever" else float(kept)


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON types, for ``config show``."""
    return settings.model_dump(mode="json")
