from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image_harness import Studio, open_studio
from tests.support.models.pipelines import PIPELINES


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def module_studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    name = request.param
    studio = open_studio(name, tmp_path_factory.mktemp(name))
    yield studio
    studio.engine.close()


@pytest.fixture
def studio(module_studio: Studio) -> Iterator[Studio]:
    yield module_studio
    assert module_studio.engine.in_flight == 0


@pytest.fixture
def painter(tmp_path: Path) -> Iterator[Studio]:
    """One of a test's own, to be broken."""
    studio = open_studio("sd", tmp_path)
    yield studio
    studio.engine.close()
