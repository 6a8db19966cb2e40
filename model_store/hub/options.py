"""Holds the options of a pull: which hub is asked, with what token, how fast."""

from dataclasses import dataclass, field


class Rate:
    """Holds a bandwidth in bytes per second that may change while it is used; None is no limit."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self.bytes_per_second = bytes_per_second


@dataclass(frozen=True)
class HubOptions:
    """Holds the address of a hub and a token, which is sent to that hub's host and nowhere else.

    ``mirrors`` are asked in turn where the hub does not deliver, without the token.
    """

    endpoint: str | None = None  #: None: HF_ENDPOINT, else the hub itself
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    bytes_per_second: int | Rate | None = None  #: of all files of a pull together
    parallel: int = 4  #: files that are fetched at the same time
    mirrors: tuple[str, ...] = ()
    min_bytes_per_second: int = 1024  #: of a connection; fewer count as a stall
