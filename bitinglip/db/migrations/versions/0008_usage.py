"""Count what keys use by model and day, and bound it by quotas of the key."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_AMOUNTS = ("requests", "prompt_tokens", "completion_tokens", "pixels", "audio_us", "gpu_us")


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("quotas", sa.JSON(), nullable=True))
    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _AMOUNTS),
        sa.PrimaryKeyConstraint("key_id", "model", "day", name="pk_usage"),
    )
    op.create_index("ix_usage_day", "usage", ["day"])
