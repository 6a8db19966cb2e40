"""Hub options of a process that pulls."""

from pathlib import Path
from typing import Any

import pytest

from bitinglip.downloads.download import Wanted
from bitinglip.downloads.hub import HubAccess, hub_token
from bitinglip.errors import DownloadFailed
from bitinglip.settings import Settings
from bitinglip.settings.hub import Hub
from model_store.errors import TokenRefused

WANTED = Wanted(repo="org/model", name="model", revision="v1")


def access(token: str | None = None, models: Any = None, **hub: Any) -> HubAccess:
    settings = Settings.model_validate({"hub": hub, "models": models or {}})
    return HubAccess(settings, Path("/home/models"), token)


def test_hub_is_not_asked_where_the_settings_say_so() -> None:
    with pytest.raises(DownloadFailed, match=r"hub\.offline"):
        access(offline=True).check()
    access().check()


def test_order_holds_what_is_wanted_and_the_servers_own_token(tmp_path: Path) -> None:
    endpoint = "http://hub.lan"
    order = access("hf_a", endpoint=endpoint, min_bytes_per_second=7).order(WANTED, 5000)
    assert order.min_bytes_per_second == 7
    assert (order.repo, order.name, order.revision) == ("org/model", "model", "v1")
    assert (order.token, order.bytes_per_second, order.endpoint) == ("hf_a", 5000, endpoint)
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("hf_b\n")
    file = str(tmp_path / "token")
    assert access("hf_a", token_file=file).order(WANTED, None).token == "hf_b"


def test_order_allows_pickles_where_the_settings_do() -> None:
    assert not access().order(WANTED, None).allow_pickles
    allowed = access(models={"model": {"allow_pickles": True}})
    assert allowed.order(WANTED, None).allow_pickles


def test_token_of_the_settings_comes_before_the_environment_s(tmp_path: Path) -> None:
    environ = {"HF_TOKEN": "hf_environ"}
    assert hub_token(Hub(), environ) == "hf_environ"
    hub = Hub(token_file=str(tmp_path / "file"))
    with pytest.raises(TokenRefused, match=r"hub\.token_file cannot be read \(no such file"):
        hub_token(hub, environ)
    (tmp_path / "file").touch(0o600)
    (tmp_path / "file").write_text(" hf_file\n")
    assert hub_token(hub, environ) == "hf_file"
    (tmp_path / "file").write_text("\n")
    assert hub_token(hub, environ) is None
    (tmp_path / "file").chmod(0o644)
    with pytest.raises(TokenRefused, match=r"hub\.token_file holds a secret that others may read"):
        hub_token(hub, environ)


@pytest.mark.parametrize("text", ["hf_a\r\nX-Evil: 1", "hf_ä", "hf a", "hf_" + "x" * 5000])
def test_token_of_the_settings_that_is_no_header_is_refused_without_being_shown(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "file").touch(0o600)
    (tmp_path / "file").write_text(text)
    with pytest.raises(TokenRefused) as caught:
        hub_token(Hub(token_file=str(tmp_path / "file")), {})
    assert text[:4] not in str(caught.value)
