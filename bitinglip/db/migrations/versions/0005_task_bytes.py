"""Add the bytes of tasks, which their bounds are counted in."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("tasks") as batch:
        batch.add_column(sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0"))
    held = "coalesce(length(request), length(CAST(result AS TEXT)), 0)"
    op.execute(f"UPDATE tasks SET bytes = {held}")
