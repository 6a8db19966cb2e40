"""Alembic runs this; the connection comes from upgrade.py, already in a transaction."""

from alembic import context

from bitinglip.db.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
context.run_migrations()
