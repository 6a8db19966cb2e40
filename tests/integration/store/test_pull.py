"""Pulls from a hub that fails in every way: what is fetched, what is kept, what is said."""

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.errors import BadFiles, DownloadError, NoSpace, PullCancelled, PullRunning
from model_store.hub.pull import HubOptions, PullRequest, pull
from model_store.store import ModelStore
from tests.support.hub import REPO, SHA, FakeHub, Fault, fake_hub
from tests.support.model_folders import llama, llama_tensors, pipeline, write
from tests.support.pulls import (
    PULLER,
    TOKEN,
    WEIGHTS,
    Told,
    after_some,
    kept_bytes,
    part_bytes,
    pulled,
    refused,
)
from tests.support.wait import eventually

BIG = 3_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = llama(tmp_path / "origin")
    padded = {**llama_tensors(), "padding": np.arange(BIG, dtype=np.uint32).astype(np.uint8)}
    save_file(padded, folder / WEIGHTS)
    write(folder / "empty.txt", "")
    (folder / "twin.txt").write_bytes((folder / "tokenizer_config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with fake_hub(folder) as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time; what was waited for."""
    naps: list[float] = []
    monkeypatch.setattr("model_store.hub.retries.nap", lambda _, seconds: naps.append(seconds))
    return naps


def test_pull_brings_a_model(store: ModelStore, hub: FakeHub) -> None:
    told = Told()
    made = pulled(store, hub, progress=told, token=TOKEN)
    assert (made.name, made.source, made.revision) == (REPO, f"hub:{REPO}", SHA)
    assert {entry.path for entry in made.files} == set(hub.files) - {"pytorch_model.bin"}
    assert store.verify(REPO) == []
    assert told.done == told.sizes
    assert sum(told.sizes.values()) == made.total_bytes
    assert not list(store.partial.iterdir())
    for path in store.path(REPO).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert not [path for path, _ in hub.requests if "agent-harnesses" in path]


def test_token_never_reaches_the_second_host(store: ModelStore, hub: FakeHub) -> None:
    pulled(store, hub, token=TOKEN)
    assert all(token == f"Bearer {TOKEN}" for _, token in hub.requests)
    assert hub.far_headers
    assert TOKEN not in str(hub.far_headers)
    manifest = store.path(REPO).parent / "manifest.json"
    assert TOKEN not in manifest.read_text()
    assert TOKEN not in repr(HubOptions(hub.url, TOKEN))


@pytest.mark.parametrize("cut", [1, 100_000, 1_500_001])
def test_resume_after_a_reset_goes_on_where_it_stopped(
    store: ModelStore, hub: FakeHub, quick: list[float], cut: int
) -> None:
    told = Told()
    hub.faults[WEIGHTS] = Fault(times=2, cut_after=cut)
    pulled(store, hub, progress=told)
    assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])
    assert told.done == told.sizes
    assert quick


def test_resume_fetches_only_what_is_missing(store: ModelStore, hub: FakeHub) -> None:
    hub.faults[WEIGHTS] = Fault(stall_after=1_500_000)
    refused(store, hub, PullCancelled, cancelled=after_some(store))
    kept = next(store.partial.glob("pull-*/*.part")).stat().st_size
    assert kept > 500_000
    hub.sent.clear()
    told = Told()
    pulled(store, hub, progress=told)
    assert hub.sent == {WEIGHTS: len(hub.files[WEIGHTS]) - kept}
    assert told.before[WEIGHTS] == kept, "progress begins where it was"
    assert store.verify(REPO) == []


def test_resume_after_a_kill_goes_on(store: ModelStore, hub: FakeHub, tmp_path: Path) -> None:
    hub.slow = 0.02
    command = [sys.executable, "-c", PULLER, str(tmp_path / "store"), REPO, hub.url]
    with subprocess.Popen(command) as process:
        eventually(lambda: part_bytes(store) > 1_000_000)
        refused(store, hub, PullRunning)
        assert store.list() == []
        process.send_signal(signal.SIGKILL)
    key = next(store.partial.glob("pull-*/*.part"))
    kept = key.stat().st_size
    time.sleep(0.1)
    hub.slow = 0
    hub.sent.clear()
    pulled(store, hub)
    assert hub.sent == {WEIGHTS: len(hub.files[WEIGHTS]) - kept}
    assert store.verify(REPO) == []


def test_retry_of_a_corrupt_body(store: ModelStore, hub: FakeHub) -> None:
    told = Told()
    hub.faults[WEIGHTS] = Fault(corrupt=True)
    hub.faults["config.json"] = Fault(corrupt=True)
    pulled(store, hub, progress=told)
    assert store.verify(REPO) == []
    assert told.done == told.sizes
    assert hub.sent[WEIGHTS] == 2 * len(hub.files[WEIGHTS])


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_retry_ends_for_a_body_that_is_always_corrupt(
    store: ModelStore, hub: FakeHub, path: str
) -> None:
    hub.faults[path] = Fault(times=-1, corrupt=True)
    assert "came damaged twice" in refused(store, hub, DownloadError)


@pytest.mark.parametrize("damage", ["flipped", "short", "long"])
def test_resume_hashes_again_what_was_whole(store: ModelStore, hub: FakeHub, damage: str) -> None:
    """A disk may damage what an interrupted pull had finished."""
    true = hub.files[WEIGHTS]
    flipped = true[:-1] + bytes([true[-1] ^ 1])
    kept = {"flipped": flipped, "short": true[:-1], "long": true + b"x"}[damage]
    told = Told()
    with store.pulling(REPO) as blobs:
        (blobs / hashlib.sha256(true).hexdigest()).write_bytes(kept)
    pulled(store, hub, progress=told)
    assert (store.path(REPO) / WEIGHTS).read_bytes() == true
    assert told.done == told.sizes


def test_resume_does_not_fetch_again_what_is_whole(store: ModelStore, hub: FakeHub) -> None:
    with store.pulling(REPO) as blobs:
        (blobs / hashlib.sha256(hub.files[WEIGHTS]).hexdigest()).write_bytes(hub.files[WEIGHTS])
    pulled(store, hub)
    assert WEIGHTS not in hub.sent


@pytest.mark.parametrize("where", ["faults", "near_faults"])
def test_retry_while_the_hub_is_busy(
    store: ModelStore, hub: FakeHub, quick: list[float], where: str
) -> None:
    getattr(hub, where)[WEIGHTS] = Fault(status=503)
    getattr(hub, where)["config.json"] = Fault(status=429, headers={"Retry-After": "7"})
    hub.info_faults = [(503, {})]
    pulled(store, hub)
    assert sum(quick) > 7


def test_retry_ends_while_the_hub_stays_busy(
    store: ModelStore, hub: FakeHub, quick: list[float]
) -> None:
    hub.near_faults[WEIGHTS] = Fault(times=-1, status=503)
    assert "HTTP status 503" in refused(store, hub, DownloadError)
    assert sum(quick) < 60
    hub.info_faults = [(503, {})] * 9
    assert "HTTP status 503" in refused(store, hub, DownloadError)


def test_retry_asks_again_for_an_expired_link(
    store: ModelStore, hub: FakeHub, quick: list[float]
) -> None:
    hub.faults[WEIGHTS] = Fault(times=2, status=403)
    pulled(store, hub)
    assert quick


def test_resume_from_a_server_that_knows_no_ranges(store: ModelStore, hub: FakeHub) -> None:
    told = Told()
    hub.faults[WEIGHTS] = Fault(stall_after=1_500_000)
    refused(store, hub, PullCancelled, cancelled=after_some(store))
    hub.faults[WEIGHTS] = Fault(ranges=False)
    hub.sent.clear()
    pulled(store, hub, progress=told)
    assert hub.sent == {WEIGHTS: len(hub.files[WEIGHTS])}
    assert store.verify(REPO) == []
    assert told.done == told.sizes


def test_retry_of_connections_that_are_reset(
    store: ModelStore, hub: FakeHub, quick: list[float]
) -> None:
    hub.faults[WEIGHTS] = Fault(times=3, cut_after=800_000, reset=True)
    hub.faults["config.json"] = Fault(times=3, cut_after=0, reset=True)
    pulled(store, hub)
    assert quick
    assert store.verify(REPO) == []


def test_size_that_exceeds_the_listing_is_refused(store: ModelStore, hub: FakeHub) -> None:
    hub.faults[WEIGHTS] = Fault(times=-1, more=b"x")
    assert "more of model.safetensors" in refused(store, hub, DownloadError)


def test_size_below_the_listing_is_refused(
    store: ModelStore, hub: FakeHub, quick: list[float]
) -> None:
    hub.listing = hub.siblings()
    for entry in hub.listing:
        if entry["rfilename"] == WEIGHTS:
            entry["lfs"]["size"] += 1
    assert "does not deliver" in refused(store, hub, DownloadError)
    assert quick


@pytest.mark.parametrize("path", ["../../evil.json", "/abs.json", "C:\\x.json", "a/../../b.json"])
def test_listing_with_a_path_that_leads_elsewhere_is_refused(
    store: ModelStore, hub: FakeHub, tmp_path: Path, path: str
) -> None:
    hub.listing = [*hub.siblings(), {"rfilename": path, "size": 1, "blobId": "1" * 40}]
    refused(store, hub, BadFiles)
    assert not hub.sent
    assert not list(tmp_path.parent.rglob("evil*"))


@pytest.mark.parametrize("blob_id", ["../../evil", "", None, "1" * 39, "/etc/passwd", 7])
def test_listing_with_a_hash_that_is_none_is_refused(
    store: ModelStore, hub: FakeHub, blob_id: Any
) -> None:
    hub.listing = [*hub.siblings(), {"rfilename": "x.json", "size": 1, "blobId": blob_id}]
    assert "no size or hash" in refused(store, hub, DownloadError)


@pytest.mark.parametrize("listing", [[], [{}], {"a": 1}, [7], "x"])
def test_listing_that_makes_no_sense_is_refused(
    store: ModelStore, hub: FakeHub, listing: Any
) -> None:
    hub.listing = listing
    refused(store, hub, (DownloadError, BadFiles))  # type: ignore[arg-type]


def test_pull_that_cannot_run_is_refused_before_any_weights(
    store: ModelStore, hub: FakeHub
) -> None:
    hub.files["config.json"] = hub.files["config.json"].replace(b"{", b'{"auto_map": {}, ', 1)
    refused(store, hub, BadFiles)
    assert WEIGHTS not in hub.sent
    del hub.files[WEIGHTS]
    assert "pickles" in refused(store, hub, BadFiles)


def test_include_takes_no_index_that_leads_elsewhere(store: ModelStore, hub: FakeHub) -> None:
    index = b'{"weight_map": {"x": "../../secret.safetensors"}}'
    hub.files["model.safetensors.index.json"] = index
    assert "cannot be taken" in refused(store, hub, BadFiles, include=["*"])
    assert WEIGHTS not in hub.sent


def test_disk_that_fails_is_named_without_its_paths(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("model_store.store.write_manifest", fail)
    assert "Input/output error" in refused(store, hub, BadFiles)
    assert kept_bytes(store) > BIG, "what came is of use to the next pull"


def test_headers_that_lie_are_not_kept(store: ModelStore, hub: FakeHub) -> None:
    hub.files[WEIGHTS] += b"x"
    assert "do not cover" in refused(store, hub, BadFiles)
    assert kept_bytes(store) == 0


def test_pull_of_a_gated_repository_says_so(store: ModelStore, hub: FakeHub) -> None:
    hub.gated = "manual"
    assert "HF_TOKEN" in refused(store, hub, DownloadError)
    gate = {"X-Error-Code": "GatedRepo"}
    for path in hub.files:
        hub.near_faults[path] = Fault(times=-1, status=403, headers=gate)
    begun = time.monotonic()
    assert "ask for access" in refused(store, hub, DownloadError, token=TOKEN)
    assert time.monotonic() - begun < 20
    assert not hub.sent


def test_pull_of_a_missing_repository_says_so(store: ModelStore, hub: FakeHub) -> None:
    assert "no public repository" in refused(store, hub, DownloadError, repo="org/other")
    assert "no revision 'v9'" in refused(store, hub, DownloadError, revision="v9")
    hub.token = "another"
    hub.private = True
    assert "token is refused" in refused(store, hub, DownloadError, token=TOKEN)


def test_pull_without_a_hub_says_so(store: ModelStore) -> None:
    with pytest.raises(DownloadError, match=r"reached at 127\.0\.0\.1:9 .*HF_ENDPOINT"):
        pull(store, PullRequest(repo=REPO, hub=HubOptions("http://me:secret@127.0.0.1:9")))
    offline = HubOptions("http://127.0.0.1:9", offline=True)
    with pytest.raises(DownloadError, match="offline"):
        pull(store, PullRequest(repo=REPO, hub=offline))


def test_disk_has_a_floor(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")

    def used(_: Path) -> usage:
        return usage(2**28 if part_bytes(store) > 1_000_000 else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", used)
    assert "This needs" in refused(store, hub, NoSpace)
    assert 0 < kept_bytes(store) < len(hub.files[WEIGHTS])
    monkeypatch.undo()
    pulled(store, hub)


def test_pull_of_a_pipeline_takes_the_folders_of_its_index(
    store: ModelStore, tmp_path: Path
) -> None:
    folder = pipeline(tmp_path / "origin")
    shutil.copytree(folder / "unet", folder / "unet_1_0")
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", folder / "whole.safetensors")
    with fake_hub(folder) as hub:
        made = pulled(store, hub, name="sd")
    assert {entry.path.partition("/")[0] for entry in made.files} == {
        "model_index.json", "unet", "scheduler", "safety_checker",
    }  # fmt: skip
    assert store.verify("sd") == []


def test_interrupt_keeps_what_came(store: ModelStore, hub: FakeHub, tmp_path: Path) -> None:
    hub.slow = 0.02
    command = [sys.executable, "-c", PULLER, str(tmp_path / "store"), REPO, hub.url]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: part_bytes(store) > 500_000)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert kept_bytes(store) > 500_000
    assert not list(store.partial.glob("draft-*"))
