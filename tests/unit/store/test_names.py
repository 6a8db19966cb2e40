"""Names of models, revisions and files."""

from pathlib import Path

import pytest

from model_store.errors import BadFiles, BadName
from model_store.names import (
    check_file,
    check_files,
    check_name,
    check_repo,
    check_revision,
    folder_name,
    model_name,
)
from model_store.store import ModelStore


@pytest.mark.parametrize("name", ["a", "gpt2", "org/Model-7B_v1.0", "a" * 96, "a-/b"])
def test_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/a",
        "a/",
        "a/b/c",
        "a--b",
        "a..b",
        "-a",
        "_a",
        ".a",
        "a b",
        "a\n",
        "a\\b",
        "a%2fb",
        "ä",
        "a\0",
        "a" * 97,
        "../a",
        "a/../b",
        "C:/x",
        "hf://a/b",
    ],
)
def test_names_that_are_bad_are_refused(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


@pytest.mark.parametrize("name", ["downloads", "downloads/x", "org/fit"])
def test_names_that_routes_would_hide_are_refused_as_they_come(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadName, match="another name"):
        ModelStore(tmp_path).check_free(name)
    assert check_name(name) == name, "a model that is here already keeps it"


def test_names_never_share_a_folder() -> None:
    names = ["a/b", "a-/b", "a-b", "ab", "a/b-c", "a-b/c"]
    assert len({folder_name(check_name(name)) for name in names}) == len(names)
    for name in (*names, "a-/b", "a", "a-"):
        assert model_name(folder_name(check_name(name))) == name


def test_revisions_are_checked() -> None:
    for good in ("main", "v1.0", "refs/pr/12", "0" * 40):
        assert check_revision(good) == good
    for bad in ("", "../main", "a..b", "-x", "a b", "main\n", "x" * 129):
        with pytest.raises(BadName):
            check_revision(bad)


@pytest.mark.parametrize("path", ["config.json", "a/b c/d.txt", "ä.txt", "x" * 255, "...", "a/.b"])
def test_file_names_are_accepted(path: str) -> None:
    assert check_file(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../evil",
        "a/../../b",
        "/abs",
        "C:/x",
        "C:\\x",
        "a\\b",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\ud800b",
        "x" * 256,
        "ä" * 128,
        "/".join("a" * 600),
    ],
)
def test_file_names_that_are_bad_are_refused(path: str) -> None:
    with pytest.raises(BadFiles) as caught:
        check_file(path)
    assert len(caught.value.message) < 350
    assert caught.value.message.isascii()


def test_listing_is_checked_as_a_whole() -> None:
    check_files(["a", "b/a", "b/c"])
    for bad in (["a/B", "a/b"], ["é", "e\u0301"], ["ß", "ss"], ["A", "a/b"]):
        with pytest.raises(BadFiles):
            check_files(bad)
    check_files([str(number) for number in range(10_000)])
    with pytest.raises(BadFiles, match="more than"):
        check_files([str(number) for number in range(10_001)])


@pytest.mark.parametrize(
    "repo",
    [
        "https://huggingface.co/org/Model-7B",
        "https://huggingface.co/org/Model-7B/tree/main?x=1",
        "http://mirror.example:8000/org/Model-7B",
        "hf.co/org/Model-7B:Q8_0",
        "hf://org/Model-7B",
        "org/Model-7B:Q4_K_M",
    ],
)
def test_repository_that_is_written_otherwise_is_told_how(repo: str) -> None:
    with pytest.raises(BadName, match=r"; write org/Model-7B\.$"):
        check_repo(repo)


def test_repository_without_a_name_is_told_the_form() -> None:
    with pytest.raises(BadName, match="; write owner/name"):
        check_repo("https://huggingface.co")
    with pytest.raises(BadName, match="letters, digits"):
        check_repo("../evil")
