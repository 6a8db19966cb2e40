"""Takes the request for a ticket: one connection that watches one task."""

from typing import Annotated

from pydantic import Field

from bitinglip.wire.body import Body


class WatchTicketRequest(Body):
    """Holds the body of ``POST /auth/ws-ticket``."""

    task_id: Annotated[str, Field(min_length=1, max_length=128)]
