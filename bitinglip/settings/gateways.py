"""Declares the settings under ``gateways``: several servers over one database."""

from typing import Annotated

from pydantic import Field

from bitinglip.settings.sections import Section


class Gateways(Section):
    shared: bool = Field(
        False,
        description="let other servers use the same PostgreSQL database at once; each of them must "
        "set this; needs database.url and gateways.folder",
    )
    folder: str | None = Field(
        None,
        description="folder that all servers of a shared database reach by this same path, and "
        "that is there before they start; it holds the files of tasks, uploads and batches",
    )
    secret_file: str | None = Field(
        None,
        description="file whose secret is taken over into a new home as its secret.key, so that "
        "keys, tokens and links of one server work on the others; null: the home makes its own",
    )
    heartbeat: Annotated[float, Field(ge=0.1, le=60)] = Field(
        1,
        description="seconds between two heartbeats in a shared database; what other servers "
        "changed is seen no later",
    )
    lease: Annotated[float, Field(ge=1, le=600)] = Field(
        10,
        description="seconds without a heartbeat after which a server counts as dead and others "
        "take over its waiting tasks and batches; at least three heartbeats",
    )
