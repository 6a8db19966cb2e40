import pytest

from bitinglip.confinement import hide_secrets


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
