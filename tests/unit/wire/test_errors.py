"""Errors of jobs name the fields that their callers sent."""

import pytest

from bitinglip.errors import UnsupportedParameter
from bitinglip.wire.errors import name_as_openai


@pytest.mark.parametrize(
    ("kind", "param", "shown"),
    [
        ("transcription", "task", "model"),  # translation is a route, not a field
        ("transcription", "timestamps", "timestamp_granularities"),
        ("speech", "text", "input"),
        ("transcription", "language", "language"),
        ("text", "prompt", "prompt"),
        ("text", None, None),
    ],
)
def test_param_of_a_job_s_error_is_openai_s_field(
    kind: str, param: str | None, shown: str | None
) -> None:
    error = UnsupportedParameter("no", param=param)
    name_as_openai(error, kind)
    assert error.param == shown
