"""Lists the models of a store by their manifests, from the disk or from memory."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

from model_store.adapters import with_bases
from model_store.disk import is_broken, unavailable
from model_store.errors import BadFiles
from model_store.manifest import Manifest, read_manifest
from model_store.names import folder_name

_TICK_NS = 100_000_000


class Listing:
    """Holds the manifests below a folder, read again when a rename has changed it.

    It looks whenever it is asked, or after ``keep_in_memory`` only when ``refresh`` is called.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: tuple[int | None, dict[str, Manifest]] = (None, {})
        self._in_memory = False
        self._reads = count()
        self._last_read = -1  #: whose findings are held
        self._follow: Callable[[Mapping[str, Manifest]], None] = lambda _: None
        self._folder: tuple[int, int] | None = None  #: the device and inode that they are of

    def all(self) -> dict[str, Manifest]:
        """Return the manifests by name, in the order of names."""
        if not self._in_memory:
            self.refresh()
        return self._seen[1]

    def find(self, name: str) -> Manifest | None:
        """Return a model's manifest; looks once more for one that is not known."""
        found = self.all().get(name)
        if found is None and self._in_memory:  # another process may have brought it just now
            self.refresh()
            found = self._seen[1].get(name)
        return found

    def keep_in_memory(
        self, follow: Callable[[Mapping[str, Manifest]], None] = lambda _: None
    ) -> None:
        """Answer from memory from now on: no disk on the way of a request.

        What other processes change is seen at the next ``refresh``, which must be called from
        time to time. ``follow`` is told the models that will be listed, before they are.
        """
        self._follow = follow
        self._seen = (None, {})
        self.refresh()
        self._in_memory = True

    def refresh(self) -> None:
        """Read the manifests again if the folder has changed.

        Raises StoreUnavailable; then the models that were seen last are still listed.
        """
        try:
            self._read_if_changed()
        except OSError as error:
            raise unavailable("read", error) from error

    def _read_if_changed(self) -> None:
        number = next(self._reads)
        root = self._root.stat()
        stamp, folder = root.st_mtime_ns, (root.st_dev, root.st_ino)
        if stamp == self._seen[0] and folder == self._folder:
            return
        # Clocks of file systems tick slowly: two changes within one tick have one stamp.
        settled = time.time_ns() - stamp > _TICK_NS
        found = sorted(self._read(), key=lambda manifest: manifest.name)
        manifests = with_bases({manifest.name: manifest for manifest in found})
        if folder != self._folder and self._seen[1] and not manifests:
            # An empty folder in the place of the one with models: where a disk was mounted.
            raise OSError(errno.ENODEV, "another, empty folder is in its place")
        if number > self._last_read:  # another thread may have looked later, and be done already
            self._last_read, self._folder = number, folder
            self._follow(manifests)
            # One assignment: another thread finds the stamp and what belongs to it.
            self._seen = (stamp if settled else None, manifests)

    def _read(self) -> Iterator[Manifest]:
        for folder in self._root.iterdir():
            if not folder.name.startswith("."):
                try:
                    manifest = read_manifest(folder)
                except BadFiles:
                    continue
                except OSError as error:
                    if is_broken(error):
                        raise
                    continue
                if folder_name(manifest.name) == folder.name:
                    yield manifest
