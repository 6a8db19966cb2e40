"""Adds servers that share a database, and the owners of tasks and batches."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_gateways"),
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
    )
    for table in ("tasks", "batches", "downloads"):
        op.add_column(
            table,
            sa.Column("gateway", sa.String(), nullable=False, server_default=sa.text("''")),
        )
    for table in ("tasks", "batches"):
        op.add_column(
            table,
            sa.Column("cancel_asked", sa.Boolean(), nullable=False, server_default=sa.false()),
        )
