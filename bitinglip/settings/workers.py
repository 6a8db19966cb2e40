"""Declares the settings of processes that run models, here or on the nodes of a Ray cluster."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bitinglip.settings.sections import Confine, Seconds, Section
from workers.nodes.ray_address import head_of

_PORTS = re.compile(r"\d{1,5}(-\d{1,5})?")
_HIGHEST_PORT = 65535


def port_range(text: str) -> tuple[int, int]:
    """Return the first and the last port of a range such as 25100-25199. Raises ValueError."""
    if not _PORTS.fullmatch(text):
        raise ValueError("must be a port or a range of ports such as 25100-25199; 0 is any")
    first, _, last = text.partition("-")
    found = int(first), int(last or first)
    if not 0 <= found[0] <= found[1] <= _HIGHEST_PORT or (found[0] == 0 and last):
        raise ValueError("must be a range of ports from 1 to 65535, the lower one first; 0 is any")
    return found


def _is_port_range(text: str) -> str:
    port_range(text)
    return text


def _is_absolute(path: str | None) -> str | None:
    if path is not None and not Path(path).is_absolute():
        raise ValueError("must be an absolute path: it is of other machines, too")
    return path


def _is_head(address: str) -> str:
    head_of(address)
    return address


class Ray(Section):
    address: Annotated[str, AfterValidator(_is_head)] = Field(
        "auto",
        description="address of the Ray cluster's head as host:port; auto uses the cluster that "
        "runs on this machine",
    )
    namespace: str = Field(
        "bitinglip",
        min_length=1,
        max_length=64,
        description="namespace of Ray in which the agents are named",
    )
    bind_address: str | None = Field(
        None,
        description="address at which the agent of each node listens; null uses the one by which "
        "Ray knows the node, and the gateway always connects to that one",
    )
    ports: Annotated[str, AfterValidator(_is_port_range)] = Field(
        "25100-25199",
        description="ports at which agents listen, of which each takes the first free one; the "
        "gateway must reach them; 0 is any",
    )
    secret_file: Annotated[str | None, AfterValidator(_is_absolute)] = Field(
        None,
        description="file with the secret by which gateway and agents know each other, at this "
        "path on every node; null makes one at each start, which is given to the "
        "agents through Ray",
    )
    models: Literal["shared", "pull"] = Field(
        "shared",
        description="how nodes get the files of models: shared (mounted at the same path as here) "
        "or pull (each node takes a copy of what it is to load from this server, once)",
    )
    models_path: Annotated[str | None, AfterValidator(_is_absolute)] = Field(
        None,
        description="local folder on each node for copies of models (models: pull), shared by "
        "the agents of all servers there; null uses models in the folder below",
    )
    models_max_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="size in bytes of the copies of models that a node keeps; those go first that "
        "have been unused for longest; null fills the disk up to a twentieth, at most 1 GiB",
    )
    folder: Annotated[str | None, AfterValidator(_is_absolute)] = Field(
        None,
        description="local folder on each node for what workers make until it is sent to the "
        "gateway, and for caches of compiled code; null uses one in the system's folder of "
        "temporary files",
    )
    heartbeat_timeout: Seconds = Field(
        10,
        description="seconds without a heartbeat of a node's agent before all its workers count "
        "as lost; at most half of workers.heartbeat_timeout is used",
    )
    start_timeout: Seconds = Field(
        60, description="seconds that the start waits for the first nodes to tell of their devices"
    )

    @model_validator(mode="after")
    def _check_copies(self) -> Self:
        for name in ("models_path", "models_max_bytes"):
            if self.models != "pull" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for copies of models, which only models: pull makes")
        return self


class Workers(Section):
    launcher: Literal["local", "ray"] = Field(
        "local",
        description="where models run: local (processes of this machine) or ray (the nodes of a "
        "Ray cluster, needs bitinglip[ray])",
    )
    heartbeat_timeout: Annotated[float, Field(ge=1)] = Field(
        30,
        description="seconds without a heartbeat before a worker is killed; one that loads sends "
        "none, and is killed if its process was stopped by a signal for as long",
    )
    load_timeout: Seconds = Field(
        600,
        description="seconds without progress before the loading of a model is ended; reading "
        "files, however slowly, is progress",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="worker crashes within restart_window before a model is taken out of service"
    )
    restart_window: Seconds = Field(
        60,
        description="length in seconds of the window in which max_restarts counts crashes; a model "
        "out of service is tried again after as long, then after twice as long each time",
    )
    spare: bool = Field(
        True,
        description="keep an idle process with the libraries imported, so that models load faster",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="CPU threads per worker; null uses one per core, or a single one for models "
        "with less than 16 MiB of weights, which more threads slow down",
    )
    confine: Confine = Field(
        "auto",
        description="confine workers: auto (what is safe here), require (all, or no load) or off",
    )
    ray: Ray = Ray()
