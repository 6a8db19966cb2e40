"""Short names of repositories."""

from pathlib import Path

import pytest

from model_store.errors import BadName
from model_store.hub.aliases import FILE, aliases, repo_of


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-2-13b", "meta-llama/Llama-2-13b-hf"),
        ("stable-diffusion-xl", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("bark", "suno/bark"),
    ],
)
def test_alias_of_the_design_names_a_repository(name: str, repo: str) -> None:
    assert repo_of(name) == repo


@pytest.mark.parametrize("name", ["llama-2", "Llama-2-7b", "llama-2-7b-hf", "org/bark", "", "ba"])
def test_alias_matches_as_a_whole_only(name: str) -> None:
    assert repo_of(name) is None


def test_alias_of_the_home_comes_first_and_removes(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("ours: org/mine\nbark: org/other\nsdxl: null\n")
    assert repo_of("ours", tmp_path) == "org/mine"
    assert repo_of("bark", tmp_path) == "org/other"
    assert repo_of("sdxl", tmp_path) is None
    assert repo_of("llama-2-7b", tmp_path)
    assert list(aliases(tmp_path)) == sorted(aliases(tmp_path))
    (tmp_path / FILE).write_text("# nothing yet\n")
    assert aliases(tmp_path) == aliases()


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "a: 1", "a/b: org/x", "a: ../../x", "7: org/x", "a: https://x/y", "\0"]
)
def test_alias_list_that_is_damaged_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BadName):
        repo_of("bark", tmp_path)
