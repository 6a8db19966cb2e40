"""The profile of the server, as an admin gets it, and what is off by default."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.api_server import ADMIN, Served, serve
from tests.support.audit_log import on_disk

PATH = "/api/v1/debug/profile"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=served.headers(ADMIN), timeout=60) as found:
        yield found


def test_profile_shows_the_server_s_threads_and_is_audited(
    served: Served, client: httpx.Client
) -> None:
    headers = {"x-request-id": "the-profile"}
    answer = client.get(PATH, params={"seconds": 0.2}, headers=headers)
    assert answer.status_code == 200
    frames = [each["name"] for each in answer.json()["shared"]["frames"]]
    assert any(each.startswith("asyncio.") for each in frames)
    (row,) = on_disk(served.home, request_id="the-profile")
    assert (row["action"], row["outcome"]) == ("server.profile", "ok")


def test_profile_is_folded_when_asked_for(client: httpx.Client) -> None:
    answer = client.get(PATH, params={"seconds": 0.1, "format": "folded"})
    assert answer.headers["content-type"].startswith("text/plain")
    stack, _, count = answer.text.splitlines()[0].rpartition(" ")
    assert ";" in stack
    assert int(count) > 0


@pytest.mark.parametrize(
    "query",
    ["seconds=0", "seconds=61", "seconds=nan", "seconds=inf", "seconds=a", "format=svg", "who=1"],
)
def test_profile_refuses_what_it_does_not_understand(client: httpx.Client, query: str) -> None:
    answer = client.get(f"{PATH}?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_profile_is_for_admins_alone(served: Served) -> None:
    headers = served.headers("cluster:write,cluster:read")
    assert httpx.get(served.url + PATH, headers=headers).status_code == 403


def test_traces_are_off_by_default(served: Served, client: httpx.Client) -> None:
    assert served.services.tracer is None
    assert "traceresponse" not in client.get("/v1/models").headers
