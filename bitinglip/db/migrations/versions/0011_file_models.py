"""Add the models of files, so that a key that may not use one cannot fetch what it made."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"


def upgrade() -> None:
    with op.batch_alter_table("files") as batch:
        batch.add_column(
            sa.Column("model", sa.String(), nullable=False, server_default=sa.text("''"))
        )
    found = "SELECT tasks.model FROM tasks WHERE tasks.id = files.task_id"
    op.execute(f"UPDATE files SET model = coalesce(({found}), '')")
