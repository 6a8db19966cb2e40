"""Workers' folders: made and removed, and results taken from them without trust."""

import os
from pathlib import Path

import pytest

from tests.support.wait import eventually
from workers.folders import WorkFolders, placed, take_results
from workers.protocol import (
    Failed,
    ImageDone,
    ImageFile,
    ImageFormat,
    Sampling,
    SpeechDone,
    SpeechJob,
    TextJob,
)

JOB = "task-1"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "admin.key").write_text("secret")
    return tmp_path / "work"


def images(*sizes: int, image_format: ImageFormat = "png") -> ImageDone:
    made = tuple(
        ImageFile(width=8, height=8, seed=1, format=image_format, bytes=size) for size in sizes
    )
    return ImageDone(id=JOB, images=made, steps=1, scheduler="ddim")


def speech(size: int) -> SpeechDone:
    return SpeechDone(id=JOB, format="wav", bytes=size, sample_rate=8000, duration=1.0, sentences=1)


def files(work: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (work.parent / "files").iterdir()}


def test_results_are_taken_from_the_workers_folder(work: Path) -> None:
    (work / f"{JOB}-0.png").write_text("one")
    (work / f"{JOB}-1.png").write_text("three")
    (work / f"{JOB}-0.wav").write_text("sound")
    done, spoken = images(3, 5), speech(5)
    assert take_results(done, work, work.parent / "files") is done
    assert take_results(spoken, work, work.parent / "files") is spoken
    expected = {f"{JOB}-0.png": "one", f"{JOB}-1.png": "three", f"{JOB}-0.wav": "sound"}
    assert files(work) == expected
    assert list(work.iterdir()) == []


def test_results_are_taken_though_their_folder_was_removed(work: Path) -> None:
    (work / f"{JOB}-0.png").write_text("one")
    (work.parent / "files").rmdir()
    done = images(3)
    assert take_results(done, work, work.parent / "files") is done
    assert files(work) == {f"{JOB}-0.png": "one"}
    assert (work.parent / "files").stat().st_mode & 0o777 == 0o700


def test_results_of_an_attempt_that_died_are_replaced(work: Path) -> None:
    (work.parent / "files" / f"{JOB}-0.png").write_text("half")
    (work / f"{JOB}-0.png").write_text("whole")
    take_results(images(5), work, work.parent / "files")
    assert files(work) == {f"{JOB}-0.png": "whole"}


@pytest.mark.parametrize("trick", ["nothing", "link", "folder", "pipe", "size"])
def test_results_that_are_no_files_of_the_worker_fail_the_job(work: Path, trick: str) -> None:
    path = work / f"{JOB}-0.png"
    if trick == "link":
        path.symlink_to(work.parent / "admin.key")
    elif trick == "folder":
        path.mkdir()
    elif trick == "pipe":
        os.mkfifo(path)
    elif trick == "size":
        path.write_text("longer than it said")
    found = take_results(images(6), work, work.parent / "files")
    assert isinstance(found, Failed)
    assert (found.id, found.code) == (JOB, "INFERENCE_FAILED")
    assert str(work) not in found.message
    assert files(work) == {}
    assert (work.parent / "admin.key").read_text() == "secret"


def test_results_cannot_be_named_out_of_their_folder(work: Path) -> None:
    (work / f"{JOB}-0.x").mkdir()
    for name in ("x/../../../admin.key", "png\0"):
        # as a broken worker might say
        done = images(6, image_format=name)  # type: ignore[arg-type]
        found = take_results(done, work, work.parent / "files")
        assert isinstance(found, Failed)
    assert (work.parent / "admin.key").read_text() == "secret"


def test_placed_jobs_write_into_the_folder_of_their_worker() -> None:
    job = SpeechJob(id=JOB, text="hello", seed=1, folder="results")
    moved = placed(job, Path("own"))
    assert isinstance(moved, SpeechJob)
    assert (moved.folder, moved.text) == ("own", "hello")
    assert placed(job, None) is job
    text = TextJob(id=JOB, prompt="x", sampling=Sampling(max_tokens=1))
    assert placed(text, Path("own")) is text


def test_folders_are_private_swept_at_the_start_and_removed_after_their_worker(
    tmp_path: Path,
) -> None:
    root = tmp_path / "work"
    (root / "left" / "deep").mkdir(parents=True)
    (root / "left" / "deep" / "file").touch()
    (root / "stray").touch()
    folders = WorkFolders(root)
    folders.sweep()
    assert list(root.iterdir()) == []
    mine, other = folders.make(), folders.make()
    assert mine != other
    assert mine.stat().st_mode & 0o777 == 0o700
    (mine / "file").touch()
    folders.remove(mine)
    eventually(lambda: not mine.exists())
    assert other.exists()
