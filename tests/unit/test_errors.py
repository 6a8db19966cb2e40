"""The codes of errors: one list for the gateway, the workers and the store."""

from datetime import UTC, datetime
from typing import get_args

import msgspec
import pytest

from bitinglip import errors
from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.models.state import ModelState
from model_store.errors import StoreCode
from model_store.manifest import Manifest
from workers.codes import DRIVER_STARTED, NOT_GRANTED, Code, LoadCode
from workers.protocol import (
    Failed,
    LoadFailed,
)

TABLE = {answer.code for answer in errors.TABLE.values()}


def test_error_codes_of_workers_are_those_of_the_table() -> None:
    assert set(get_args(Code)) == TABLE
    assert set(get_args(LoadCode)) == TABLE | {DRIVER_STARTED, NOT_GRANTED}


def test_error_codes_of_the_store_are_in_the_table() -> None:
    assert set(get_args(StoreCode)) <= TABLE


@pytest.mark.parametrize(("kind", "name"), [(Failed, "failed"), (LoadFailed, "load_failed")])
def test_error_code_that_is_not_in_the_table_does_not_decode(kind: type, name: str) -> None:
    event = {"type": name, "id": "j", "code": "OUT_OF_MEMROY", "message": ""}
    with pytest.raises(msgspec.ValidationError, match="code"):
        msgspec.convert(event, kind)
    assert msgspec.convert({**event, "code": "OUT_OF_MEMORY"}, kind)


def test_error_code_of_a_load_in_a_used_process_is_shown_as_one_of_the_table() -> None:
    """Check a code that the pool acts on: if no other process could load, clients must know it."""
    manifest = Manifest(
        name="m",
        kind="text",
        engine="text",
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    state = ModelState(manifest, RestartBudget(1, 1.0))
    assert isinstance(state.refusal(DRIVER_STARTED, "It failed.", 0.0), errors.ModelLoadFailed)
