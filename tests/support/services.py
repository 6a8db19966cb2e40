"""Programs that tests start and no package of Python brings."""

from typing import NoReturn

import pytest

OPTION = "--without-services"


def missing(config: pytest.Config, what: str, package: str) -> NoReturn:
    """Fail because a program is missing, or skip where the command line says so."""
    if config.getoption(OPTION):
        pytest.skip(f"{what} is not installed, and {OPTION} says so")
    pytest.fail(
        f"{what} is not installed: apt-get install {package}; or leave out its tests with {OPTION}",
        pytrace=False,
    )
