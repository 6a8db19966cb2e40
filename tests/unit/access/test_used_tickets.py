"""Tickets that several servers share: the rows of used ones do not stay."""

import asyncio
import time
from pathlib import Path

from sqlmodel import select

from bitinglip.access.keys import KeyRing
from bitinglip.access.tickets import LIFETIME, SharedTickets
from bitinglip.access.tokens import Tokens
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.db.tables import RevokedToken

SECRET = b"s" * 32


def test_ticket_that_was_used_is_forgotten_where_no_token_was_revoked(tmp_path: Path) -> None:
    async def run(db: Database) -> None:
        audit = AuditLog(db, SECRET)
        ring = await KeyRing.open(db, SECRET, audit)
        tokens = await Tokens.open(db, ring, SECRET, audit)
        _, key = await ring.create(name="a")
        caller = ring.authenticate(key)
        before = SharedTickets(db, SECRET, clock=lambda: time.time() - LIFETIME - 60)
        for tickets in (before, SharedTickets(db, SECRET)):
            await tickets.take(tickets.issue(caller, "t"), "t")
        await tokens.forget_expired()
        async with db.read() as session:
            assert len((await session.scalars(select(RevokedToken))).all()) == 1

    async def whole() -> None:
        db = await Database.open(tmp_path / "db")
        try:
            await run(db)
        finally:
            await db.close()

    asyncio.run(whole())
