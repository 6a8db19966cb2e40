"""Add what was learned of the memory that models take."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "footprints",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("floor_bytes", sa.BigInteger(), nullable=False),
        sa.Column("load_seconds", sa.Float(), nullable=True),
        sa.Column("loads", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_footprints"),
    )
