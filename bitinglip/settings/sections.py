"""Declares the settings of the server and its parts, one class per section of config.yaml."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bitinglip.settings.addresses import AddressRange, HostName, Origin, Proxy, PublicUrl


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]

_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?) ?([smhd])", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def span_in_seconds(value: object) -> object:
    """Return the seconds of a span such as ``10m``; numbers are left to the field. Raises
    ValueError for other text."""
    if not isinstance(value, str):
        return value
    if match := _SPAN.fullmatch(value):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError(f"{value[:40]!r} is no number of seconds and no span such as 30m or 90d")


def _span_or_forever(value: object) -> object:
    return value if value == "forever" else span_in_seconds(value)


#: how long something unused is kept: seconds, a span such as 30m, or forever
KeepAlive = Annotated[Seconds | Literal["forever"], BeforeValidator(_span_or_forever)]

#: how long something that has ended is kept: seconds, or a span such as 12h
Kept = Annotated[float, Field(ge=1), BeforeValidator(span_in_seconds)]
Lasting = Annotated[float, Field(ge=0, le=604_800), BeforeValidator(span_in_seconds)]  #: a week
UsageKept = Annotated[float, Field(ge=32 * 86_400), BeforeValidator(span_in_seconds)]

#: YAML reads a plain ``off`` as false
Confine = Annotated[
    Literal["auto", "require", "off"],
    BeforeValidator(lambda value: "off" if value is False else value),
]


class Server(Section):
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="port to listen on; 0 takes a free one")
    max_body_bytes: Bytes = Field(10_485_760, description="maximum size of a JSON body in bytes")
    max_upload_bytes: Bytes = Field(
        104_857_600, description="maximum size of a multipart form, files included, in bytes"
    )
    drain_timeout: Seconds = Field(
        30, description="seconds to wait for running requests at shutdown"
    )
    drain_notice: Annotated[float, Field(ge=0, le=600)] = Field(
        0,
        description="seconds before a shutdown in which /readyz answers 503 while requests are "
        "still taken, so that load balancers send the next ones elsewhere",
    )
    allowed_hosts: list[HostName] = Field(
        [],
        description="Host header names accepted besides loopback, the bound address, that of "
        "public_url and, if bound to all addresses, the machine's own: host.docker.internal for "
        "containers on this machine, .example.com for a domain and all below it, * for every name",
    )
    cors_origins: list[Origin] = Field(
        [], description="web origins (CORS) that may call the API, such as https://app.example"
    )
    trusted_proxies: list[Proxy] = Field(
        [],
        description="addresses and networks of reverse proxies whose headers are believed "
        "(Forwarded, X-Forwarded-For, -Proto, -Host, -Prefix); those of others are ignored",
    )
    public_url: PublicUrl | None = Field(
        None,
        description="URL by which clients reach the server, for links in answers; null takes it "
        "from the request",
    )
    tls_cert: str | None = Field(
        None, description="TLS certificate file (PEM); setting it enables HTTPS"
    )
    tls_key: str | None = Field(None, description="private key file (PEM) of tls_cert")
    trust_loopback: bool = Field(
        True,
        description="take requests from loopback for local ones, which read /metrics without a key "
        "and may import models; set to false behind a reverse proxy on the same machine",
    )
    request_timeout: Seconds = Field(
        600, description="maximum seconds per request, time in the queue included"
    )
    stream_comment_interval: Annotated[float, Field(ge=0.01, le=3600)] = Field(
        10,
        description="seconds of silence after which a stream of events sends a comment line, also "
        "while its model loads or it waits in the queue, so that proxies do not end it",
    )
    max_connections: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="maximum open connections; null uses the limit of descriptors, at most 16384",
    )
    max_connections_per_address: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="maximum open connections of one client address, loopback excepted; null is a "
        "quarter of all",
    )
    max_requests_per_key: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="maximum requests of one API key at once, streams included; null is half of "
        "all connections",
    )

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both, or neither")
        return self


LongSpan = Annotated[float, Field(gt=0, le=3_153_600_000), BeforeValidator(span_in_seconds)]


class KeyRotation(Section):
    max_age: LongSpan | None = Field(
        None,
        description="age at which the secret of an API key ends unless it is rotated before: "
        "seconds, or a span such as 90d; null never. The key in admin.key is rotated by the server",
    )
    notice: LongSpan | None = Field(
        None,
        description="how long before that answers carry Deprecation and Sunset headers: seconds, "
        "or a span such as 14d; null is 14 days, or a quarter of max_age if less",
    )

    @model_validator(mode="after")
    def _notice_is_within_the_age(self) -> Self:
        if self.notice is not None and (self.max_age is None or self.notice >= self.max_age):
            raise ValueError("notice must be shorter than max_age")
        return self


class Security(Section):
    require_api_key: bool = Field(True, description="require a valid API key on every request")
    allow_insecure: bool = Field(
        False,
        description="allow listening beyond loopback, or any web origin, while require_api_key is "
        "false",
    )
    ip_allow: list[AddressRange] = Field(
        [],
        description="addresses and networks that may use the server, loopback among them; empty "
        "allows all. The Unix socket in the home stays open",
    )
    ip_deny: list[AddressRange] = Field(
        [], description="addresses and networks that may not use the server, even if ip_allow does"
    )
    key_rotation: KeyRotation = KeyRotation()


class FakeDevice(Section):
    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="name of the simulated device", examples=["card"]
    )
    memory_bytes: Annotated[int, Field(gt=0)] = Field(
        description="memory of the simulated device in bytes", examples=[85_899_345_920]
    )


def _are_positive(limits: dict[str, int]) -> dict[str, int]:
    if wrong := next((name for name, limit in limits.items() if limit <= 0), None):
        raise ValueError(f"the limit of {wrong!r} should be greater than 0")
    return limits


MemoryLimits = Annotated[dict[str, int], AfterValidator(_are_positive)]


class Devices(Section):
    require: Literal["auto", "cuda"] = Field(
        "auto",
        description="cuda: without a usable card /readyz answers 503 with the reason and no model "
        "runs on the CPU unless it is set to; auto: models may run on the CPU",
    )
    live_without_card: bool = Field(
        True,
        description="false: /livez answers 503 once every card that was in use is lost, so that "
        "what runs the container restarts it",
    )
    fake: list[FakeDevice] = Field(
        [], description="simulated devices that replace the machine's, for tests"
    )
    cpu_memory_bytes: Annotated[int, Field(gt=0)] | None = Field(
        None, description="memory budget in bytes for models on the CPU; null uses 80 % of RAM"
    )
    headroom_bytes: Bytes = Field(
        268_435_456,
        description="bytes kept free on each accelerator for the driver and fragmentation",
    )
    display_headroom_bytes: Bytes = Field(
        1_073_741_824,
        description="bytes kept free instead on an accelerator that a screen hangs on, if more",
    )
    memory_limit: MemoryLimits = Field(
        {},
        description="bytes that models may take at most of an accelerator, by its index or UUID "
        "(or the beginning of it), or of each under the name all",
    )
    perf_boost: bool = Field(
        True,
        description="let CUDA raise the clocks of a card as soon as a model is loaded there; false "
        "sets CUDA_DISABLE_PERF_BOOST, which saves idle power with some drivers",
    )
    page_cache_bytes: Bytes | None = Field(
        None,
        description="bytes of RAM that cache unloaded models' files; null is a quarter, 0 disables",
    )


class Queue(Section):
    # Not 0: what waits is what a model is loaded for.
    max_waiting: Annotated[int, Field(ge=1)] = Field(
        256,
        description="maximum requests queued per model; further ones are refused with QUEUE_FULL",
    )
    max_input_bytes: Annotated[int, Field(gt=0)] = Field(
        268_435_456,
        description="memory in bytes for prompts of unfinished requests; one key may hold half",
    )
    ageing: Annotated[float, Field(gt=0)] = Field(
        10,
        description="seconds a key waits unserved before its priority rises by one level",
    )


class ResidencyRules(Section):
    keep_alive: KeepAlive = Field(
        1800,
        description="idle time after which a model is unloaded: seconds, 30m, or forever; longer "
        "saves loads, shorter saves the power of a card",
        validate_default=True,  # to a float, as the type says: others are shown with a warning
    )
    min_seconds: Seconds = Field(
        20,
        description="minimum seconds a model in use stays loaded, or 4 x its load time if less",
    )
    patience: Seconds = Field(
        15, description="seconds requests wait for memory before a model in use is drained for them"
    )


class Files(Section):
    retention: Kept | None = Field(
        None,
        description="how long a generated file is kept: seconds, or a span such as 12h; null uses "
        "tasks.retention",
    )
    link_lifetime: Lasting = Field(
        3600,
        description="how long an image's link in answers on OpenAI's surface opens it without a "
        "key: seconds, or a span such as 15m; 0 gives links that need the key",
    )
    max_bytes: Bytes = Field(
        21_474_836_480,
        description="maximum bytes of generated files; the largest holder loses its oldest first",
    )
    max_upload_bytes: Bytes = Field(
        4_294_967_296,
        description="maximum bytes of unfinished requests' uploads on disk; one key may hold half",
    )
    max_cache_bytes: Bytes = Field(
        10_737_418_240,
        description="maximum bytes of code compiled for models, kept between their loads; the "
        "model that holds most loses its oldest first; checked once an hour",
    )
    min_free_bytes: Bytes | None = Field(
        None,
        description="disk space in bytes that uploads and tasks leave free; null is 1 GiB or 5 %",
    )


class Tasks(Section):
    retention: Kept = Field(
        86_400,
        description="how long a finished task and its result are kept: seconds, or a span such as "
        "12h",
    )
    max_bytes: Bytes = Field(
        1_073_741_824,
        description="maximum bytes of finished tasks; the largest holder loses its oldest first",
    )


class Usage(Section):
    retention: UsageKept | None = Field(
        34_560_000,
        description="how long the usage of a key, by model and day, is kept: seconds, or a span of "
        "32d or more; null keeps it",
    )


class OpenAI(Section):
    unknown_fields: Literal["ignore", "refuse"] = Field(
        "ignore",
        description="request fields on /v1 that OpenAI's API does not have: ignore (the response's "
        "header X-Ignored-Fields names them) or refuse",
    )
    public_audio_lists: bool = Field(
        False,
        description="answer GET /v1/audio/models and /v1/audio/voices without a key, as Open WebUI "
        "asks for them; any client can read the names of speech models and voices then",
    )
    response_retention: Kept = Field(
        2_592_000,
        description="how long a stored response of /v1/responses is kept: seconds, or a span such "
        "as 30d",
    )
    response_max_bytes: Bytes = Field(
        1_073_741_824,
        description="maximum bytes of stored responses; the largest holder loses its oldest first",
    )


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level that is logged"
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="log format; auto is console on a terminal, else JSON lines"
    )
    requests: bool = Field(
        True,
        description="log a line for each request: route, status, seconds, ids of request, key, "
        "model and task; at the level info, and not for probes and the dashboard's own",
    )
