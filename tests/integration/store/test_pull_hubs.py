"""Pulls from hubs that stall, move, hide, rename and expire, and from mirrors."""

import errno
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session
from safetensors.numpy import save_file

from model_store.errors import (
    BadFiles,
    BadName,
    DownloadError,
    Gated,
    NoSpace,
    NotFoundOnHub,
    PullCancelled,
    TokenRefused,
)
from model_store.hub import connections
from model_store.hub.plan import Plan
from model_store.hub.pull import HubOptions, PullRequest, changes, plan, request_again, update
from model_store.store import ModelStore
from tests.support.hub import REPO, SHA, FakeHub, Fault, fake_hub, serve
from tests.support.model_folders import llama, llama_tensors
from tests.support.pulls import TOKEN, WEIGHTS, kept_bytes, pulled, refused, request_of

BIG = 2_000_000
NEXT = "6" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = llama(tmp_path / "origin")
    noise = np.random.default_rng(3).integers(0, 255, BIG, np.uint8)
    save_file({**llama_tensors(), "padding": noise}, folder / WEIGHTS)
    with fake_hub(folder) as hub:
        yield hub


@pytest.fixture
def mirror(hub: FakeHub) -> Iterator[FakeHub]:
    with serve(FakeHub(hub.files)) as mirror:
        yield mirror


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.hub.retries.nap", lambda *_: None)


def planned(store: ModelStore, hub: FakeHub, repo: str = REPO, **more: Any) -> Plan:
    return plan(store, request_of(hub, repo, **more))


def again(store: ModelStore, hub: FakeHub) -> PullRequest:
    return request_again(store.get(REPO), HubOptions(hub.url))


def moved(hub: FakeHub) -> None:
    """Move main to a commit with another config and one file more."""
    files = {**hub.files, "generation_config.json": b"{}"}
    files["config.json"] = files["config.json"].replace(b"}", b"  }")
    hub.commit(NEXT, files)


# ---- stalls and cancels --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["listing", "headers", "body"])
def test_cancel_ends_a_stalled_pull_within_a_second(
    store: ModelStore, hub: FakeHub, where: str
) -> None:
    asked: list[float] = []

    def cancelled() -> bool:
        """Return True once the hub has been asked for a file that it does not send."""
        stalls = len(hub.requests) > 0 if where == "listing" else WEIGHTS in str(hub.requests)
        if stalls:
            asked.append(time.monotonic())
        return stalls

    hub.info_stalls = where == "listing"
    hub.faults[WEIGHTS] = Fault(stall_after=0 if where == "headers" else 1_000_000)
    refused(store, hub, PullCancelled, cancelled=cancelled)
    assert time.monotonic() - asked[0] < 8, "less than any time-out of a socket"


@pytest.mark.usefixtures("quick")
def test_stall_ends_in_another_try(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_TIMEOUT", 1.0)
    hub.faults[WEIGHTS] = Fault(stall_after=1_000_000)
    pulled(store, hub)
    assert store.verify(REPO) == []
    assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])


@pytest.mark.usefixtures("quick")
def test_stall_is_a_connection_that_trickles_too(
    store: ModelStore, hub: FakeHub, mirror: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never silent; the file comes from the mirror in the end, and what trickled in stays."""
    monkeypatch.setattr(connections, "_SLOW_SECONDS", 0.05)
    hub.slow = 0.03
    pulled(store, hub, mirrors=(mirror.url,), min_bytes_per_second=1 << 40, parallel=1)
    assert store.verify(REPO) == []
    assert mirror.sent[WEIGHTS] < len(hub.files[WEIGHTS])


def test_bandwidth_of_a_pull_can_be_bounded(store: ModelStore, hub: FakeHub) -> None:
    begun = time.monotonic()
    pulled(store, hub, bytes_per_second=4 * BIG)
    assert time.monotonic() - begun > 0.1


# ---- revisions -----------------------------------------------------------------------------------


def test_revision_that_moves_during_the_pull_does_not_mix(store: ModelStore, hub: FakeHub) -> None:
    made = pulled(store, hub, planned=lambda _: moved(hub))
    assert made.revision == SHA
    for path, data in hub.old[SHA].items():
        assert (store.path(REPO) / path).read_bytes() == data
    assert not [path for path, _ in hub.requests if "/main/" in path or NEXT in path]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/7", NEXT, "feature/x"])
def test_revision_is_a_branch_a_tag_a_commit_or_a_pull_request(
    store: ModelStore, hub: FakeHub, revision: str
) -> None:
    moved(hub)
    hub.sha, hub.files, hub.old = SHA, hub.old[SHA], {NEXT: hub.files}
    hub.refs = {"v1": NEXT, "refs%2Fpr%2F7": NEXT, "feature%2Fx": NEXT}
    assert planned(store, hub).revision == SHA
    assert planned(store, hub, revision=revision).revision == NEXT


def test_update_fetches_what_differs_and_replaces_the_model(
    store: ModelStore, hub: FakeHub
) -> None:
    pulled(store, hub)
    request = again(store, hub)
    assert not update(store, request)
    moved(hub)
    found = changes(store, request)
    assert (found.old_revision, found.new_revision) == (SHA, NEXT)
    assert (found.added, found.changed, found.removed) == (
        ("generation_config.json",), ("config.json",), (),
    )  # fmt: skip
    assert found.missing_bytes == len(hub.files["config.json"]) + 2
    hub.sent.clear()
    assert update(store, request) == found
    assert WEIGHTS not in hub.sent
    assert store.get(REPO).revision == NEXT
    assert store.verify(REPO) == []
    assert (store.path(REPO) / "config.json").read_bytes() == hub.files["config.json"]


@pytest.mark.usefixtures("quick")
def test_update_that_fails_leaves_the_model_as_it_was(store: ModelStore, hub: FakeHub) -> None:
    before = pulled(store, hub)
    moved(hub)
    hub.faults["generation_config.json"] = Fault(times=-1, status=503)
    with pytest.raises(DownloadError, match="503"):
        update(store, again(store, hub))
    assert store.get(REPO).revision == before.revision
    assert store.verify(REPO) == []


def test_update_of_what_did_not_come_from_the_hub_is_refused(
    store: ModelStore, source: Path
) -> None:
    store.import_folder(source, "mine")
    with pytest.raises(BadFiles, match="did not come from the hub"):
        request_again(store.get("mine"), HubOptions("http://127.0.0.1:9"))


def test_pull_under_another_name_fetches_nothing_again(store: ModelStore, hub: FakeHub) -> None:
    pulled(store, hub)
    hub.sent.clear()
    assert planned(store, hub, name="again").missing_bytes == 0
    made = pulled(store, hub, name="again")
    assert hub.sent == {}
    assert (store.path("again") / WEIGHTS).samefile(store.path(REPO) / WEIGHTS)
    assert made.total_bytes == store.get(REPO).total_bytes


# ---- names, tokens, access -----------------------------------------------------------------------


def test_repository_that_was_renamed_is_told_and_pulled(store: ModelStore, hub: FakeHub) -> None:
    hub.renamed["old/name"] = REPO
    plans: list[Plan] = []
    made = pulled(store, hub, repo="old/name", planned=plans.append)
    assert (made.name, made.source) == ("old/name", f"hub:{REPO}")
    assert any("old/name is org/model" in note for note in plans[0].notes)


@pytest.mark.parametrize(("kind", "word"), [("datasets", "dataset"), ("spaces", "space")])
def test_repository_that_is_no_model_is_named_for_what_it_is(
    store: ModelStore, hub: FakeHub, kind: str, word: str
) -> None:
    hub.others["org/data"] = kind
    assert f"It is a {word}, not a model" in refused(store, hub, NotFoundOnHub, repo="org/data")
    assert "only models" in refused(store, hub, BadName, repo=f"{kind}/data")


def test_token_that_expired_is_left_out_for_a_public_repository(
    store: ModelStore, hub: FakeHub
) -> None:
    hub.token = "another"
    plans: list[Plan] = []
    pulled(store, hub, token=TOKEN, planned=plans.append)
    assert any("refuses the token" in note for note in plans[0].notes)
    assert TOKEN not in str(plans)
    assert [token for _, token in hub.requests].count(f"Bearer {TOKEN}") == 1


def test_token_that_expires_during_the_pull_says_so(store: ModelStore, hub: FakeHub) -> None:
    def expire(_: Plan) -> None:
        hub.token = "another"

    said = refused(store, hub, TokenRefused, token=TOKEN, planned=expire)
    assert "may have expired" in said
    hub.token = None
    pulled(store, hub, token=TOKEN)


def test_repository_that_is_private_says_where_a_token_goes(
    store: ModelStore, hub: FakeHub
) -> None:
    hub.private = True
    said = refused(store, hub, NotFoundOnHub)
    assert all(word in said for word in ("HF_TOKEN", "hub.token_file", "--token-stdin"))
    pulled(store, hub, token=TOKEN)


def test_repository_that_is_gated_names_its_page_without_secrets(
    store: ModelStore, hub: FakeHub
) -> None:
    hub.gated = "auto"
    secret = hub.url.replace("://", "://me:secret@")
    said = refused(store, hub, Gated, endpoint=secret)
    assert f"{hub.url}/{REPO}" in said
    assert "secret" not in said


def test_token_follows_no_redirect_of_a_file_or_of_a_listing(
    store: ModelStore, hub: FakeHub, mirror: FakeHub
) -> None:
    mirror.redirect = False
    for path in hub.files:
        target = f"{mirror.url}/{REPO}/resolve"
        hub.near_faults[path] = Fault(times=-1, to=target)
    pulled(store, hub, token=TOKEN)
    assert mirror.requests
    assert not any(token for _, token in mirror.requests)


# ---- mirrors, proxies, offline -------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_mirror_is_asked_where_the_hub_cannot_be_reached(store: ModelStore, hub: FakeHub) -> None:
    plans: list[Plan] = []
    pulled(
        store, hub, endpoint="http://127.0.0.1:9", mirrors=(hub.url,), token=TOKEN,
        planned=plans.append,
    )  # fmt: skip
    assert any("127.0.0.1:9 does not answer as a hub" in note for note in plans[0].notes)
    assert not any(token for _, token in hub.requests), "the token is the first address's"


@pytest.mark.usefixtures("quick")
def test_mirror_brings_a_file_that_the_hub_does_not_deliver(
    store: ModelStore, hub: FakeHub, mirror: FakeHub
) -> None:
    hub.faults[WEIGHTS] = Fault(times=-1, status=500)
    hub.near_faults["tokenizer_config.json"] = Fault(times=-1, status=404)
    pulled(store, hub, mirrors=(mirror.url,), token=TOKEN)
    assert store.verify(REPO) == []
    assert set(mirror.sent) == {WEIGHTS, "tokenizer_config.json"}
    assert not any(token for _, token in mirror.requests)


@pytest.mark.parametrize(
    ("listing", "lacking"),
    [
        ([{"rfilename": "config.json"}], "no size or hash of config.json"),
        ([{"rfilename": "config.json", "size": 3}], "no size or hash of config.json"),
        ("nonsense", "not what a hub answers"),
    ],
)
def test_mirror_that_lacks_something_is_told_what(
    store: ModelStore, hub: FakeHub, listing: Any, lacking: str
) -> None:
    hub.listing = listing
    assert lacking in refused(store, hub, DownloadError)


def test_proxy_of_the_environment_is_used(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, hub.url)
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hub.redirect = False
    close_session()  # the hub's client has one for each process, made with the proxy of then
    try:
        pulled(store, hub, endpoint="http://hub.invalid")
    finally:
        close_session()
    assert store.verify(REPO) == []


def test_offline_variable_of_the_hub_is_one_line(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    try:
        assert "HF_HUB_OFFLINE is set" in refused(store, hub, DownloadError)
    finally:
        close_session()
    assert not hub.requests


@pytest.mark.parametrize("address", ["gopher://me:secret@x", "http://me:secret@[x:y"])
def test_proxy_that_is_none_is_refused_without_its_password(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address)
    monkeypatch.setenv("NO_PROXY", "")
    said = refused(store, hub, DownloadError)
    assert "HTTP_PROXY" in said
    assert "secret" not in said


# ---- the disk ------------------------------------------------------------------------------------


def test_disk_that_is_full_keeps_the_part_and_the_next_pull_goes_on(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_open = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 1_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:500_000])

    def opened(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.suffix == ".part" and mode == "ab":
            return Full(path, "a")
        return true_open(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", opened)
    assert "disk is full" in refused(store, hub, NoSpace)
    monkeypatch.undo()
    assert kept_bytes(store) >= 1_000_000
    hub.sent.clear()
    pulled(store, hub)
    assert 0 < hub.sent[WEIGHTS] <= len(hub.files[WEIGHTS]) - 1_000_000


@pytest.mark.usefixtures("quick")
def test_files_come_several_at_once(store: ModelStore, hub: FakeHub) -> None:
    """All begin to come and stop, until as many as may be fetched at once have begun, and no
    more: else they would stall for ever."""
    for number in range(6):
        path = f"extra{number}.json"
        hub.files[path] = b"[%d]" % number
        hub.faults[path] = Fault(stall_after=1)

    def cancelled() -> bool:
        if hub.at_once == 3:
            hub.released.set()
        return False

    pulled(store, hub, parallel=3, cancelled=cancelled)
    assert hub.released.is_set()
    assert store.verify(REPO) == []
