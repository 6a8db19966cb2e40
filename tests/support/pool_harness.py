"""A worker pool over real processes, and a listener that records what it reports."""

import asyncio
from collections.abc import Awaitable, Callable

from workers.launcher import SpawnLauncher
from workers.pool import WorkerPool
from workers.protocol import FakeOptions, JobEvent, Load
from workers.worker import Worker


class Recorder:
    def __init__(self, seconds: float = 60) -> None:
        """``seconds``: as long as a condition is waited for."""
        self._seconds = seconds
        self.events: list[JobEvent] = []
        self.progress: list[float] = []
        self.lost: list[str] = []
        self.changed = asyncio.Event()

    def on_events(self, _worker: Worker, events: list[JobEvent]) -> None:
        self.events += events
        self.changed.set()

    def on_progress(self, _worker: Worker, fraction: float) -> None:
        self.progress.append(fraction)

    def on_lost(self, _worker: Worker, cause: str) -> None:
        self.lost.append(cause)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(self._seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def fake(**options: object) -> Load:
    return Load(
        model="echo",
        engine="fake",
        path="",
        heartbeat_seconds=0.2,
        fake=FakeOptions(faults=True, **options),  # type: ignore[arg-type]
    )


def with_pool(
    test: Callable[[WorkerPool, Recorder], Awaitable[None]],
    launcher: SpawnLauncher | None = None,
    *,
    heartbeat_timeout: float = 10,
    load_timeout: float = 20,
    entry: str | None = None,
    seconds: float = 60,
) -> None:
    """Run a test on a pool; ``entry`` plays the worker in place of the product's own."""

    async def run() -> None:
        recorder = Recorder(seconds)
        pool = WorkerPool(
            launcher or (SpawnLauncher(entry) if entry else SpawnLauncher()),
            recorder,
            heartbeat_timeout=heartbeat_timeout,
            load_timeout=load_timeout,
            spare=False,
        )
        watch = asyncio.create_task(pool.watch())
        try:
            await test(pool, recorder)
        finally:
            watch.cancel()
            await pool.close()
            assert pool.workers == []

    asyncio.run(run())
