"""State of a download, and the request that it is made from."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bitinglip.downloads.download import Download, Fault, Priority, Requester, Wanted, new_download
from bitinglip.downloads.process import network_environment
from bitinglip.wire.admin.downloads import DownloadRequest, download_info
from bitinglip.wire.parse import parse
from model_store.errors import BadName
from model_store.hub.messages import Planned, Progressed

WANTED = Wanted(repo="org/model", name="model")
repo_of = {"short": "a/long"}.get


def made(priority: Priority = "normal", queued_at: float = 0) -> Download:
    download = new_download(WANTED, Requester("k"), priority)
    download.queued_at = queued_at
    return download


def test_download_order_is_by_priority_and_then_by_time() -> None:
    waiting = [made("low", 1), made("normal", 3), made("normal", 2), made("high", 9)]
    ordered = sorted(waiting, key=lambda each: each.place)
    assert [(each.priority, each.queued_at) for each in ordered] == [
        ("high", 9),
        ("normal", 2),
        ("normal", 3),
        ("low", 1),
    ]


def test_retry_of_a_hub_that_does_not_answer_comes_later_each_time_within_a_bound() -> None:
    download = made()
    download.start()
    pauses = [download.postpone("it is away", 3600) for _ in range(6)]
    assert pauses == [15, 30, 60, 120, 240, 300]
    told = download_info(download)
    assert (told["state"], told["error"]) == ("queued", None)
    assert "the hub" in told["waits_for"]
    assert "it is away" in told["waits_for"]
    assert told["retry_at"] is not None
    download.start()
    assert (told := download_info(download))["waits_for"] is told["retry_at"] is None
    download.progress(Progressed(bytes_done=1))
    assert download.postpone("it is away", 3600) == 15, "it has brought something meanwhile"
    assert download.failing_since is not None
    download.failing_since -= 3590
    assert 0 < (download.postpone("it is away", 3600) or 0) < 11, "the last one is at the bound"
    download.failing_since -= 20
    assert download.postpone("it is away", 3600) is None
    download.wait()
    assert download.postpone("it is away", 3600) == 15, "a restart counts from zero"


def test_download_progress_never_goes_back() -> None:
    download = made()
    assert download.fraction is None
    download.plan(Planned(bytes_total=10, bytes_done=2, files={"a": 8, "b": 2}, done={"b": 2}))
    assert download.progress(Progressed(bytes_done=6, files={"a": 4, "unlisted": 1})) == 4
    assert download.progress(Progressed(bytes_done=5, files={"a": 3})) == 0
    assert (download.bytes_done, download.files["a"].bytes_done) == (6, 4)
    assert download.fraction == 0.6
    download.end("completed", None, datetime.now(UTC))
    shown = download_info(download)
    assert (shown["bytes_done"], shown["files"][0]["bytes_done"]) == (10, 8)


def test_download_that_waits_again_has_no_error_of_the_last_time() -> None:
    download = made("low")
    download.end("failed", Fault("DISK_FULL", "full"), datetime.now(UTC))
    assert download_info(download)["error"] == {"code": "DISK_FULL", "message": "full"}
    download.queue(Requester("other"), "high")
    shown = download_info(download)
    assert (shown["state"], shown["error"], shown["finished_at"]) == ("queued", None, None)
    assert download.requester.key_id == "other"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"model_name": "a/b"}, Wanted(repo="a/b", name="a/b")),
        ({"model_name": "a/b@v1"}, Wanted(repo="a/b", name="a/b", revision="v1")),
        (
            {"model_name": "a/b@v1", "revision": "v2", "name": "c", "include": ["*.json"]},
            Wanted(repo="a/b", name="c", revision="v2", include=("*.json",)),
        ),
        ({"model_name": "short@v1"}, Wanted(repo="a/long", name="short", revision="v1")),
        ({"model_name": "short", "name": "c"}, Wanted(repo="a/long", name="c")),
        ({"model_name": "a/b", "revision": None, "name": None}, Wanted(repo="a/b", name="a/b")),
    ],
)
def test_download_request_says_what_is_wanted(fields: dict[str, Any], wanted: Wanted) -> None:
    assert parse(DownloadRequest, json.dumps(fields).encode()).wanted(repo_of) == wanted


@pytest.mark.parametrize("fields", [{"model_name": "a/b@"}, {"model_name": "a/b@../c"}])
def test_download_request_with_a_wrong_revision(fields: dict[str, Any]) -> None:
    request = parse(DownloadRequest, json.dumps(fields).encode())
    if fields["model_name"].endswith("@"):
        assert request.wanted(repo_of).revision is None
    else:
        with pytest.raises(BadName):
            request.wanted(repo_of)


def test_puller_is_told_of_the_network_and_of_nothing_else() -> None:
    environ = {
        "https_proxy": "http://user:password@proxy",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "HF_TOKEN": "hf_x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    assert sorted(network_environment(environ)) == ["NO_PROXY", "SSL_CERT_FILE", "https_proxy"]
