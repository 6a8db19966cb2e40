"""Disks that are full, read-only, or gone: an error that says so, and no half of a model."""

import asyncio
import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from model_store.errors import PullRunning, StoreUnavailable, UnknownModel
from model_store.export import export
from model_store.store import ModelStore
from tests.support.api_server import Served, serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.model_folders import llama
from tests.support.other_user import as_other_user, open_folder
from tests.support.wait import eventually

#: the longest file that a process may write stands for a disk that is full after so many bytes
FULL = """
import os, resource, sys
from pathlib import Path
from model_store.errors import NoSpace
from model_store.export import export
from model_store.store import ModelStore
store, source = ModelStore(Path(sys.argv[1])), Path(sys.argv[2])
os.getuid = lambda: 12345  # so that files are copied
store.import_folder(source, "whole")
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for work in (
    lambda: store.import_folder(source, "half"),
    lambda: store.replacing("whole").import_folder(source, "whole"),
    lambda: export(store, "whole", store.root.parent / "out"),
):
    try:
        work()
    except NoSpace as error:
        print(error.message)
store.touch("whole")
"""


@pytest.mark.parametrize("limit", [100, 1200])
def test_disk_full_at_any_file_leaves_what_was_there_and_nothing_else(
    store: ModelStore, source: Path, tmp_path: Path, limit: int
) -> None:
    arguments = [str(tmp_path / "store"), str(source), str(limit)]
    ran = subprocess.run(
        [sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, check=True
    )
    expected = "The disk, or a limit of this process, takes no such large file."
    assert ran.stdout.splitlines()[0] == expected
    assert store.names() == ["whole"]
    assert store.verify("whole") == []
    assert not list(store.partial.iterdir())
    beside = {path.name for path in (tmp_path / "store" / "whole").iterdir()}
    assert beside <= {"files", "manifest.json", "usage.json"}
    assert not (tmp_path / ".out.bitinglip-export").exists()


def test_read_only_store_is_listed_and_refuses_changes() -> None:
    with open_folder() as folder:
        source = llama(folder / "source")
        ModelStore(folder / "store").import_folder(source, "mine")
        paths = [folder / "store", *(folder / "store").rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def work() -> str:
            store = ModelStore(folder / "store")
            store.touch("mine")
            assert store.names() == ["mine"]
            assert store.verify("mine") == []
            assert store.gc(do=True, partials_kept=0) == []
            with pytest.raises(StoreUnavailable) as caught:
                store.import_folder(source, "other")
            return caught.value.message

        said = as_other_user(work) if os.geteuid() == 0 else work()
        assert said == (
            "The store of models cannot be written to (Permission denied): look at its disk, and "
            "whether it is mounted."
        )
        for path in filter(Path.is_dir, paths):
            path.chmod(0o755)


def test_store_that_is_gone_says_so(store: ModelStore, source: Path) -> None:
    store.import_folder(source, "mine")
    store.listing.keep_in_memory()
    store.root.rename(store.root.with_name("gone"))
    assert store.names() == ["mine"]  # as it was seen last
    for work in (
        lambda: store.get("other"),
        lambda: store.read("mine"),
        lambda: store.import_folder(source, "other"),
        lambda: store.remove("mine"),
        store.gc,
        store.listing.refresh,
    ):
        with pytest.raises(StoreUnavailable, match="whether it is mounted"):
            work()
    store.touch("mine")
    store.root.mkdir()  # the folder on which the disk was mounted
    with pytest.raises(StoreUnavailable, match="empty folder"):
        store.listing.refresh()
    assert store.names() == ["mine"]
    store.root.rmdir()
    store.root.with_name("gone").rename(store.root)
    store.listing.refresh()
    assert store.verify("mine") == []
    store.remove("mine")
    with pytest.raises(UnknownModel):
        store.get("mine")


def test_server_goes_on_while_the_store_is_gone(tmp_path: Path) -> None:
    with serve(tmp_path) as served, httpx.Client(base_url=served.url) as client:
        models, gone = served.home.models, served.home.models.with_name("gone")
        headers = served.headers("admin")
        assert client.post(NATIVE, json=PROMPT, headers=headers).status_code == 200
        models.rename(gone)
        eventually(lambda: "cannot be read" in detail_of(client, served))
        listed = client.get("/api/v1/models", headers=headers).json()["data"]
        assert "demo" in {each["model_id"] for each in listed}
        assert client.post(NATIVE, json=PROMPT, headers=headers).status_code == 200
        refused = client.post(
            "/api/v1/models/import",
            json={"path": str(tmp_path / "llama/demo"), "name": "more"},
            headers=headers,
        )
        assert refused.status_code == 503
        assert "cannot be read" in refused.json()["error"]["message"]
        assert str(tmp_path) not in refused.text
        gone.rename(models)
        eventually(lambda: "cannot be read" not in detail_of(client, served))
        assert client.post(NATIVE, json=PROMPT, headers=headers).status_code == 200


def detail_of(client: httpx.Client, served: Served) -> str:
    health = client.get("/health", headers=served.headers("admin")).json()
    return str(health["checks"]["model_manager"]["detail"])


def test_store_on_a_file_system_that_locks_no_folders(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate NFS: an exclusive lock needs a file that is open for writing."""
    real = fcntl.flock

    def flock(handle: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.pulling("org/mine"), store.draft() as draft:
        os.utime(draft, (1, 1))
        assert store.gc(do=True, partials_kept=0) == []
        with pytest.raises(PullRunning), store.pulling("org/mine"):
            pass
    assert [each.name for each in store.gc(do=True, partials_kept=0)] == ["pull-org--mine"]
    store.import_folder(source, "mine")
    asyncio.run(loaded(store))
    store.replacing("mine").import_folder(source, "mine")
    assert store.verify("mine") == []
    export(store, "mine", store.root.parent / "out")
    assert {path.name for path in (store.root.parent / "out").iterdir()} == {
        path.name for path in source.iterdir()
    }
    store.remove("mine")
    assert not list(store.partial.iterdir())


async def loaded(store: ModelStore) -> None:
    async with store.loading(["mine"]), store.loading(["mine"]):
        assert not store.remove("mine", unless_held=True)
