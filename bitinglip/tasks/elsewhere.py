"""Reaches tasks that other servers run, where several share a database: by their rows."""

import asyncio
from collections.abc import Callable

from bitinglip.tasks.store import OPEN, TaskStore

#: seconds that a client who cancels waits for the other server
PATIENCE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  #: seconds between two looks at a row


class Elsewhere:
    """Asks the owners of tasks, and waits for what they do."""

    def __init__(self, rows: TaskStore, tell: Callable[[], None]) -> None:
        """``tell`` has other servers look at their rows at once, where it can."""
        self._rows = rows
        self._tell = tell

    async def cancel(self, task_id: str) -> None:
        """Have a task's owner cancel it; it may take longer than this waits.

        Raises DiskFull or DatabaseUnavailable.
        """
        task = await self._rows.get(task_id)
        if task is None or task.status not in OPEN:
            return
        await self._rows.ask_cancel(task_id)
        self._tell()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.ended(task_id)
        except TimeoutError:
            return

    async def ended(self, task_id: str) -> None:
        """Wait until the row of a task says how it ended. Raises DatabaseUnavailable."""
        pause = _FIRST_PAUSE
        while (task := await self._rows.get(task_id)) is not None and task.status in OPEN:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
