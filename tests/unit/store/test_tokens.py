"""Sources of the hub's token."""

import io
from pathlib import Path

import pytest

from model_store.errors import TokenRefused
from model_store.hub.tokens import find_token, read_token


def test_token_of_the_environment_comes_first_then_the_login(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("hf_login\n")
    environ = {"HF_TOKEN": "hf_new ", "HUGGING_FACE_HUB_TOKEN": "hf_old", "HF_HOME": str(tmp_path)}
    assert find_token(environ) == "hf_new"
    assert find_token({**environ, "HF_TOKEN": ""}) == "hf_old"
    login = {"HF_HOME": str(tmp_path)}
    assert find_token(login) == "hf_login"
    assert find_token(login, login=False) is None
    assert find_token({**login, "HF_TOKEN": "hf_new"}, login=False) == "hf_new"
    assert find_token({"HF_TOKEN_PATH": str(tmp_path / "token")}) == "hf_login"
    assert find_token({**login, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) is None
    assert find_token({"HF_HOME": str(tmp_path / "none")}) is None


@pytest.mark.parametrize("text", ["hf_a\r\nX-Evil: 1", "hf_ä", "hf a", "hf_" + "x" * 5000])
def test_token_that_is_no_header_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        find_token({"HF_TOKEN": text})
    assert text[:4] not in str(caught.value)


def test_token_of_a_login_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenRefused, match="no text"):
        find_token({"HF_HOME": str(tmp_path)})


def test_token_from_standard_input_is_its_first_line() -> None:
    assert read_token(io.StringIO("hf_given\nrest\n")) == "hf_given"
    with pytest.raises(TokenRefused, match="standard input"):
        read_token(io.StringIO("\n"))
