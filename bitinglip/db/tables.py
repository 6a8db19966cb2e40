"""Declares the tables. A change here needs a revision in migrations/versions; a
test compares them."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    false,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcTime(TypeDecorator[datetime]):
    """Stores a moment, aware on this side and UTC in the file."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


class Table(SQLModel):
    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING)


def _owner() -> Any:
    """Declare which server a row belongs to: empty where one has the database alone."""
    column = Column("gateway", String, nullable=False, server_default=text("''"))
    return Field(default="", sa_column=column)


def _cancel_asked() -> Any:
    """Declare whether a client has asked another server than the owner to cancel a row."""
    column = Column("cancel_asked", Boolean, nullable=False, server_default=false())
    return Field(default=False, sa_column=column)


class ApiKey(Table, table=True):
    """Stores a key. Its secret is nowhere: ``digest`` is the HMAC of the whole key under the
    pepper."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True, max_length=12)
    name: str
    digest: bytes = Field(sa_type=LargeBinary)
    pepper_id: str
    last_four: str
    scopes: list[str] = Field(sa_type=JSON)
    tier: str
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    models: list[str] | None = Field(
        default=None, sa_column=Column("models", JSON(none_as_null=True))
    )
    ip_ranges: list[str] | None = Field(
        default=None, sa_column=Column("ip_ranges", JSON(none_as_null=True))
    )
    #: of its own, by period and unit
    quotas: dict[str, dict[str, float]] | None = Field(
        default=None, sa_column=Column("quotas", JSON(none_as_null=True))
    )
    guard: str | None = None
    #: counts its secrets: 1, and one more for each rotation
    generation: int = Field(
        default=1, sa_column=Column("generation", Integer, nullable=False, server_default="1")
    )
    former_digest: bytes | None = Field(default=None, sa_type=LargeBinary)
    rotated_at: datetime | None = Field(default=None, sa_type=UtcTime)
    grace_until: datetime | None = Field(default=None, sa_type=UtcTime)


class RevokedToken(Table, table=True):
    """Stores a session token that was revoked, until the token would have expired."""

    __tablename__ = "revoked_tokens"

    id: str = Field(primary_key=True, max_length=32)
    expires_at: datetime = Field(sa_type=UtcTime)


class StoredTask(Table, table=True):
    """Stores an asynchronous task: ``request`` until it has ended, then ``result`` and
    ``error``."""

    __tablename__ = "tasks"
    __table_args__ = (Index(None, "key_id", "created_at"), Index(None, "completed_at"))

    id: str = Field(primary_key=True, max_length=64)
    key_id: str
    kind: str
    model: str
    state: str
    request: bytes | None = Field(default=None, sa_type=LargeBinary)
    result: dict[str, Any] | None = Field(
        default=None, sa_column=Column("result", JSON(none_as_null=True))
    )
    #: what it holds in the database: the request until it has ended, then the result
    bytes: int = Field(
        default=0, sa_column=Column("bytes", BigInteger, nullable=False, server_default="0")
    )
    error: dict[str, Any] | None = Field(
        default=None, sa_column=Column("error", JSON(none_as_null=True))
    )
    created_at: datetime = Field(sa_type=UtcTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    completed_at: datetime | None = Field(default=None, sa_type=UtcTime)
    gateway: str = _owner()
    cancel_asked: bool = _cancel_asked()


class StoredResponse(Table, table=True):
    """Stores a response of /v1/responses: the items that it was made from, and the
    response itself."""

    __tablename__ = "responses"
    __table_args__ = (Index(None, "completed_at"),)

    id: str = Field(primary_key=True, max_length=64)
    key_id: str
    model: str
    previous_id: str | None = None
    status: str
    input: bytes = Field(sa_type=LargeBinary)  #: JSON, here and below
    response: bytes = Field(sa_type=LargeBinary)
    bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcTime)
    completed_at: datetime | None = Field(default=None, sa_type=UtcTime)


class ClientFile(Table, table=True):
    """Stores a file that a client keeps here, or a batch has made; its bytes are in
    ``batches/``."""

    __tablename__ = "client_files"
    __table_args__ = (Index(None, "created_at"),)

    id: str = Field(primary_key=True, max_length=64)  #: sorts by time
    key_id: str
    purpose: str
    filename: str
    bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)


class StoredBatch(Table, table=True):
    """Stores a batch as clients see it, and the credential that it goes on with."""

    __tablename__ = "batches"
    __table_args__ = (Index(None, "ended_at"),)

    id: str = Field(primary_key=True, max_length=64)  #: sorts by time
    key_id: str
    credential: bytes = Field(sa_type=LargeBinary)  #: msgpack; it holds no secret
    batch: bytes = Field(sa_type=LargeBinary)  #: JSON
    bytes: int = Field(sa_type=BigInteger)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    gateway: str = _owner()
    cancel_asked: bool = _cancel_asked()


class StoredDownload(Table, table=True):
    """Stores a download of a model: what was asked for, and how it ended."""

    __tablename__ = "downloads"
    __table_args__ = (Index(None, "ended_at"), Index(None, "model"))

    id: str = Field(primary_key=True, max_length=64)  #: sorts by time
    key_id: str
    model: str
    download: bytes = Field(sa_type=LargeBinary)  #: JSON
    bytes: int = Field(sa_type=BigInteger)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    gateway: str = _owner()


class StoredFile(Table, table=True):
    """Stores an image or a sound that a task made; its bytes are in the home's ``files/``."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "created_at"), Index(None, "task_id"))

    id: str = Field(primary_key=True, max_length=128)
    task_id: str
    key_id: str
    kind: str
    model: str = Field(
        default="", sa_column=Column("model", String, nullable=False, server_default=text("''"))
    )
    media_type: str
    bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcTime)


class LearnedFootprint(Table, table=True):
    """Records what a model took of a kind of device under the settings that ``id`` is made from."""

    __tablename__ = "footprints"

    id: str = Field(primary_key=True, max_length=32)
    model: str
    memory_bytes: int = Field(sa_type=BigInteger)
    floor_bytes: int = Field(sa_type=BigInteger)
    load_seconds: float | None = None
    loads: int
    updated_at: datetime = Field(sa_type=UtcTime)


class LimitCell(Table, table=True):
    """Records when a limit of a key is full again, in microseconds of Unix time."""

    __tablename__ = "limit_cells"

    id: str = Field(primary_key=True)
    full_at: int = Field(sa_type=BigInteger)


class Usage(Table, table=True):
    """Sums what the requests of a key to a model used in a day, such as 2026-11-27, of UTC."""

    __tablename__ = "usage"
    __table_args__ = (Index(None, "day"),)

    key_id: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    day: str = Field(primary_key=True, max_length=10)
    requests: int = Field(sa_type=BigInteger)
    prompt_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    pixels: int = Field(sa_type=BigInteger)
    audio_us: int = Field(sa_type=BigInteger)
    gpu_us: int = Field(sa_type=BigInteger)


class AuditRow(Table, table=True):
    """Stores an entry of the audit log; only the package audit writes it, and
    nothing changes it."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index(None, "at"),
        Index(None, "actor"),
        Index(None, "action"),
        Index(None, "target"),
    )

    seq: int = Field(primary_key=True)
    at: int = Field(sa_type=BigInteger)  #: microseconds of Unix time
    actor: str
    actor_name: str
    token: str
    action: str
    target: str
    outcome: str
    address: str
    request_id: str
    user_agent: str
    before: str | None = None  #: JSON
    after: str | None = None
    seal: bytes = Field(sa_type=LargeBinary)


class AuditHead(Table, table=True):
    """Says in one row where the audit log begins and ends."""

    __tablename__ = "audit_head"

    id: int = Field(primary_key=True)
    first: int = Field(sa_type=BigInteger)
    anchor: bytes = Field(sa_type=LargeBinary)
    last: int = Field(sa_type=BigInteger)
    seal: bytes = Field(sa_type=LargeBinary)
    head_seal: bytes = Field(sa_type=LargeBinary)


class Gateway(Table, table=True):
    """Stores a server that shares the database, while it lives."""

    __tablename__ = "gateways"

    id: str = Field(primary_key=True, max_length=64)
    run: str  #: of this start of it
    beats: int = Field(sa_type=BigInteger)  #: its heartbeats so far
    version: str
    started_at: datetime = Field(sa_type=UtcTime)


class Change(Table, table=True):
    """Counts the changes of what servers hold in memory, by what it is."""

    __tablename__ = "changes"

    id: str = Field(primary_key=True, max_length=64)
    count: int = Field(sa_type=BigInteger)
