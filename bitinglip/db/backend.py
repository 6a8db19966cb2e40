"""Says what differs between the databases that the tables may be in."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bitinglip.errors import BitingLipError

#: runs one SELECT, and returns its rows
Select = Callable[[str], Iterable[Sequence[Any]]]


class Backend(Protocol):
    """Opens connections to one database, and knows its faults and its care."""

    @property
    def writer(self) -> AsyncEngine: ...

    @property
    def reader(self) -> AsyncEngine: ...

    async def begin(self, session: AsyncSession) -> None:
        """Have a transaction wait until it is the only one that writes."""

    def fault(self, error: exc.SQLAlchemyError) -> BitingLipError | None:
        """Return our error that says what has happened to the database; None for a bug of ours.

        InvalidRequest is for what a client wrote, and this database cannot hold.
        """

    async def claim(self, shared_as: str = "") -> bool:
        """Make sure that this server alone uses the database; False if another one does.

        ``shared_as``: its name among others that share the database; then it is refused where one
        does not share it, or has the same name. Again makes sure that it is still so.
        """

    async def release(self) -> None:
        """Let another server use the database, and close all connections."""

    async def probe(self, session: AsyncSession) -> None:
        """Make a change that means nothing, to find out whether changes work again."""

    async def shrink(self, session: AsyncSession) -> None:
        """Give free pages back to the disk, a part of them at a time."""

    def snapshot(self) -> AbstractContextManager[Select]:
        """Open a connection of its own that sees one state of the database, for a thread.

        Raises DatabaseUnavailable.
        """
