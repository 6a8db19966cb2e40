"""Names the one dialect of SQL that rows are added or changed in (``ON CONFLICT``)."""

from sqlalchemy.dialects.sqlite import insert

__all__ = ["insert"]
