"""Decides whose download is next: by priority, then each key in turn, then the oldest."""

from collections import Counter
from collections.abc import Iterable, Sequence

from bitinglip.downloads.download import Download


class Turns:
    """Remembers which key had its turn when; a key with few downloads waits for no other's many."""

    def __init__(self, most_per_key: int | None) -> None:
        """``most_per_key`` downloads of a key run at the same time; None: as many as there may."""
        self._most = most_per_key
        self._number = 0
        self._last: dict[str, int] = {}  #: by key; of those that have downloads

    def next(self, waiting: Sequence[Download], running: Iterable[Download]) -> Download | None:
        """Return the download to run next, and count it as its key's turn; None: none may run."""
        at_once = Counter(each.requester.key_id for each in running)
        may_run = [
            each
            for each in waiting
            if self._most is None or at_once[each.requester.key_id] < self._most
        ]
        if not may_run:
            return None

        def place(download: Download) -> tuple[int, int, int, float]:
            key, (rank, queued_at) = download.requester.key_id, download.place
            return rank, at_once[key], self._last.get(key, 0), queued_at

        chosen = min(may_run, key=place)
        keys = {each.requester.key_id for each in waiting} | at_once.keys()
        self._last = {key: turn for key, turn in self._last.items() if key in keys}
        self._number += 1
        self._last[chosen.requester.key_id] = self._number
        return chosen
