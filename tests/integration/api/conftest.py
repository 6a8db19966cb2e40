from collections.abc import Iterator

import httpx
import pytest

from bitinglip.settings import Server, Settings
from tests.support.fake_services import Served, echo, serve
from tests.support.http_client import MAX_BODY, TEXT
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    settings = Settings(server=Server(max_body_bytes=MAX_BODY, allowed_hosts=["box.lan"]))
    with serve(settings, echo) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=TEXT, timeout=10) as client:
        yield client
    eventually(lambda: served.dispatcher.in_flight == 0, 5)  # no job outlives its request
