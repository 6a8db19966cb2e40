from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image_harness import ImageHarness, open_image_harness
from tests.support.models.pipelines import PIPELINES


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def module_harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageHarness]:
    name = request.param
    harness = open_image_harness(name, tmp_path_factory.mktemp(name))
    yield harness
    harness.engine.close()


@pytest.fixture
def harness(module_harness: ImageHarness) -> Iterator[ImageHarness]:
    yield module_harness
    assert module_harness.engine.in_flight == 0


@pytest.fixture
def own_harness(tmp_path: Path) -> Iterator[ImageHarness]:
    """Provide a harness for one test, which may break it."""
    harness = open_image_harness("sd", tmp_path)
    yield harness
    harness.engine.close()
