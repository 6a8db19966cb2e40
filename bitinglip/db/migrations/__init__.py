"""Holds the history of the schema. Importing this costs little: alembic is imported by
``upgrade``."""

from pathlib import Path

FOLDER = Path(__file__).parent
VERSIONS = sorted(path.stem[:4] for path in (FOLDER / "versions").glob("[0-9]*.py"))
HEAD = VERSIONS[-1]
