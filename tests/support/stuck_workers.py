"""Workers whose processes do not end when they are killed, as when they hang in a driver."""

from collections.abc import Sequence

from workers.launcher import SpawnedWorker, SpawnLauncher


class StuckLauncher(SpawnLauncher):
    """Launches real processes; kills reach them only once the test lets them."""

    def __init__(self, entry: str | None = None) -> None:
        super().__init__(*([entry] if entry else []))
        self.stuck = True
        self._kept: list[SpawnedWorker] = []

    def launch(
        self, name: str, imports: Sequence[str], visible_devices: str | None
    ) -> SpawnedWorker:
        worker = super().launch(name, imports, visible_devices)
        if self.stuck:
            self._kept.append(worker)
            worker.kill = lambda: None  # type: ignore[method-assign]  # its process ends by no signal
        return worker

    def let_go(self) -> None:
        """End the processes that were killed."""
        self.stuck = False
        for worker in self._kept:
            SpawnedWorker.kill(worker)
