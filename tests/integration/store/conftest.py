from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.support.model_folders import llama


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return llama(tmp_path / "source")
