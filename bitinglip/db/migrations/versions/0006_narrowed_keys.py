"""Narrow keys to models and addresses; add their rotation, and the tokens that were revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("models", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("ip_ranges", sa.JSON(), nullable=True))
        batch.add_column(sa.Column("generation", sa.Integer(), nullable=False, server_default="1"))
        batch.add_column(sa.Column("former_digest", sa.LargeBinary(), nullable=True))
        batch.add_column(sa.Column("rotated_at", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("grace_until", sa.DateTime(), nullable=True))
    op.create_table(
        "revoked_tokens",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revoked_tokens"),
    )
