import os

import pytest

from bitinglip.confinement import hide_secrets, secret_paths
from bitinglip.settings import Settings


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({"HF_TOKEN": "hf_a\n", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_a"),
        ({"HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_b"),
        ({"HF_TOKEN": " "}, None),
        ({"BITINGLIP_API_KEY": "blk"}, None),
    ],
)
def test_token_of_the_hub_is_taken_out_of_the_environment_and_kept(
    environ: dict[str, str], token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.confinement.not_dumpable", lambda: None)
    assert hide_secrets(environ) == token
    assert environ == {}


def test_secrets_that_settings_name_are_hidden_from_workers() -> None:
    named = {
        "hub": {"token_file": "/s/hub"},
        "server": {"tls_cert": "/s/cert", "tls_key": "/s/tls"},
        "redis": {"url": "rediss://h/0?ssl_keyfile=/s/client.key", "password_file": "/s/redis"},
        "gateways": {"secret_file": "/s/gateways"},
        "workers": {"ray": {"secret_file": "/s/ray"}},
        "models": {"far": {"upstream": {"url": "http://h/v1", "key_file": "~/key"}}},
    }
    assert set(secret_paths(Settings.model_validate(named))) == {
        *(f"/s/{name}" for name in ("hub", "tls", "client.key", "redis", "gateways", "ray")),
        os.path.expanduser("~/key"),
    }
    assert secret_paths(Settings()) == ()
