"""Keeps the folder of each worker process: its temporary files, and what it makes for jobs.

A worker writes nowhere else. The gateway moves what it has made to where results are kept, and
removes the folder when the process has ended.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path

import msgspec

from workers.protocol import (
    Failed,
    ImageDone,
    ImageJob,
    Job,
    SpeechDone,
    SpeechJob,
    audio_file_name,
    image_file_name,
)

log = logging.getLogger(__name__)

_LOST = "The worker did not leave the file that it said it had made."


class WorkFolders:
    """Makes and removes workers' folders under one root, which nothing else uses."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def sweep(self) -> None:
        """Remove what workers of an earlier gateway left; none of this one's may run yet."""
        with contextlib.suppress(OSError):  # there is nothing, or it stays
            for entry in self._root.iterdir():
                _remove(entry)

    def make(self) -> Path:
        """Make a folder for the owner only. Raises OSError."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._root))

    def remove(self, folder: Path) -> None:
        """Remove the folder of a process that has ended; returns at once."""
        # Not a daemon: at the gateway's exit the last folders go too.
        threading.Thread(target=_remove, args=(folder,), name="remove folder").start()


def placed(job: Job, folder: Path | None) -> Job:
    """Return the job with its files in the folder of the worker that is to run it."""
    if folder is None or not isinstance(job, (ImageJob, SpeechJob)):
        return job
    return msgspec.structs.replace(job, folder=str(folder))


def take_results(
    done: ImageDone | SpeechDone, source: Path, target: Path
) -> ImageDone | SpeechDone | Failed:
    """Move the files of a job that succeeded to where results are kept.

    Failed if one of them is not what the worker said: a worker whose libraries have been broken
    into may have left a link, or named another user's file.
    """
    try:
        for name, size in _files(done):
            _move(source, target, name, size)
    except (OSError, ValueError):
        log.exception("a file of %s cannot be taken from its worker", done.id)
        return Failed(id=done.id, code="INFERENCE_FAILED", message=_LOST)
    return done


def _files(done: ImageDone | SpeechDone) -> list[tuple[str, int]]:
    """Return the names and sizes of a job's files."""
    if isinstance(done, SpeechDone):
        return [(audio_file_name(done.id, done.format), done.bytes)]
    return [
        (image_file_name(done.id, index, image.format), image.bytes)
        for index, image in enumerate(done.images)
    ]


def _move(source: Path, target: Path, name: str, size: int) -> None:
    """Move a file whole. Raises OSError or ValueError, and leaves nothing then."""
    if os.sep in name:
        raise ValueError("its name is a path")
    moved = target / name
    if not stat.S_ISREG((source / name).lstat().st_mode):
        raise ValueError("it is no file")
    target.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
    try:
        os.replace(source / name, moved)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source / name, moved, follow_symlinks=False)
    # Again, where the worker cannot change it any more.
    found = moved.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        _remove(moved)
        raise ValueError("it is no file of the size that it was said to have")


def _remove(path: Path) -> None:
    """Remove a folder or file as far as possible; a worker's is tried again at the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
