"""Runs code as a user unknown to the system, in folders that such a user can reach."""

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

UID = 54_321  #: without an entry in the password file
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a folder that every user may enter; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_other_user(work: Callable[[], object]) -> str:
    """Return what ``work`` returns in a child process of that user, as text; "" if it raised."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(UID)
            os.setuid(UID)
            os.write(write, str(work()).encode())
        except BaseException:  # noqa: BLE001  a child must not go on with the tests
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as result:
        said = result.read().decode()
    os.waitpid(child, 0)
    return said
