"""``doctor`` says whether a server can share its database with others."""

import os
from pathlib import Path

import pytest

from bitinglip.home import Home
from bitinglip.settings import Settings
from cli.checks.findings import Finding
from cli.checks.gateways import gateways

NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=1"


def check(home: Home, **own: object) -> list[Finding]:
    return list(gateways(shared(**own), home))


def shared(**own: object) -> Settings:
    redis = {"url": "redis://127.0.0.1:1"}
    fields = {"database": {"url": NOWHERE}, "redis": redis, "gateways": own}
    return Settings.model_validate(fields)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "common.key"
    file.touch(0o600)
    file.write_bytes(os.urandom(32))
    return file


def test_gateways_that_are_not_shared_are_not_checked(tmp_path: Path) -> None:
    assert list(gateways(Settings(), Home(tmp_path))) == []


def test_gateways_check_finds_a_folder_and_a_secret_that_are_not_there(
    tmp_path: Path, secret: Path
) -> None:
    home = Home(tmp_path / "home")
    [found] = check(home, shared=True, folder=str(tmp_path / "none"), secret_file=str(secret))
    assert (found.level, found.advice) == ("error", "mount it, or make it")
    [found] = check(home, shared=True, folder=str(tmp_path), secret_file=str(tmp_path / "none"))
    assert found.level == "error"
    assert "docs/gateways.md" in found.advice
    name = "n" * 300  # longer than a name may be: looking at it fails otherwise
    [found] = check(home, shared=True, folder=str(tmp_path / name), secret_file=str(secret))
    assert (found.level, "too long" in found.detail.lower()) == ("error", True)
    [found] = check(home, shared=True, folder=str(tmp_path), secret_file=str(tmp_path / name))
    assert (found.level, "too long" in found.detail.lower()) == ("error", True)
    assert not home.root.exists(), "a check makes nothing"


def test_gateways_check_finds_a_home_with_another_secret(tmp_path: Path, secret: Path) -> None:
    (home := Home(tmp_path / "home")).root.mkdir(mode=0o700)
    [found] = check(home, shared=True, folder=str(tmp_path), secret_file=str(secret))
    assert found.level == "ok"
    home.secret("any")
    [found] = check(home, shared=True, folder=str(tmp_path), secret_file=str(secret))
    assert found.level == "error"
    assert "another secret" in found.detail
    assert "copy it over the other" in found.advice


def test_gateways_check_warns_of_a_secret_of_its_own_and_of_no_redis(
    tmp_path: Path, secret: Path
) -> None:
    home = Home(tmp_path / "home")
    [found] = check(home, shared=True, folder=str(tmp_path))
    assert (found.level, "secret_file" in found.advice) == ("warning", True)
    own = {"shared": True, "folder": str(tmp_path), "secret_file": str(secret)}
    settings = Settings.model_validate({"database": {"url": NOWHERE}, "gateways": own})
    [found] = gateways(settings, home)
    assert (found.level, "limits" in found.detail) == ("warning", True)
