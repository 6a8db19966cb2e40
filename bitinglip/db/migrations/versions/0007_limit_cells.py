"""Keep what keys have taken of their limits, so that a restart hands out no new hour."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "limit_cells",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("full_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limit_cells"),
    )
