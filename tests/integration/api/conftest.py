from collections.abc import Iterator

import httpx
import pytest

from bitinglip.settings import Server, Settings
from tests.integration.api.asking import MAX_BODY, TEXT, echo, wait_until
from tests.integration.api.scripted import Served, serve


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    settings = Settings(server=Server(max_body_bytes=MAX_BODY, allowed_hosts=["box.lan"]))
    with serve(settings, echo) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=TEXT, timeout=10) as client:
        yield client
    wait_until(lambda: served.dispatcher.in_flight == 0)  # no job outlives its request
