"""Keeps a process on a node with the libraries imported, which becomes its next worker."""

import asyncio
import logging

from workers.engines.registry import ENGINES
from workers.exit_watch import has_ended
from workers.launcher import SpawnedWorker, SpawnLauncher

log = logging.getLogger(__name__)

IMPORTS = ENGINES["text"].preimport


class Spare:
    def __init__(self, launcher: SpawnLauncher) -> None:
        self._launcher = launcher
        self._process: SpawnedWorker | None = None

    def warm(self) -> None:
        """Start a process, if there is none."""
        if self._process is not None:
            return
        try:
            process = self._launcher.launch("spare", IMPORTS, None)
        except OSError as error:
            log.warning("no spare worker could be started: %s", error.strerror)
            return
        self._process = process

    def take(self) -> SpawnedWorker | None:
        """Return the process for a load; None if there is none."""
        process, self._process = self._process, None
        if process is not None and has_ended(process.pid):
            process.reap()
            process.close()
            return None
        return process

    async def close(self) -> None:
        """End the process; returns when it is gone."""
        if (process := self.take()) is None:
            return
        ended = asyncio.Event()
        process.watch(ended.set)
        process.kill()
        await ended.wait()
        process.reap()
        process.close()
