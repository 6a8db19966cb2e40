from collections.abc import Iterator

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import MAX_BODY
from tests.support.speaking_script import speak


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = {"max_body_bytes": MAX_BODY, "allowed_hosts": ["box.lan"]}
    with serve(tmp_path_factory.mktemp("api"), server=server) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("inference:text")
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client
    served.wait_idle()


@pytest.fixture
def admin(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server whose model thinks and calls tools; see ``speaking_script``."""
    with serve(tmp_path_factory.mktemp("speaker"), speak) as served:
        yield served
