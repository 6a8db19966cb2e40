"""Files that jobs and loads name, and their names on another machine."""

from pathlib import Path

import pytest

from workers.nodes.job_files import inputs_of, load_refusal, results_of, with_files
from workers.protocol import (
    ChatMessage,
    ImageDone,
    ImageFile,
    ImageJob,
    Load,
    Picture,
    Sampling,
    SpeechDone,
    SpeechJob,
    TextJob,
    TranscriptionJob,
)

IMAGE = ImageJob(
    id="i",
    prompt="p",
    width=8,
    height=8,
    steps=1,
    seeds=(1,),
    folder="/f",
    image="/u/a",
    mask="/u/b",
)
CHAT = TextJob(
    id="t",
    messages=(ChatMessage("user", "look", pictures=(Picture("/u/c", 0), Picture("/u/d", 4))),),
    sampling=Sampling(max_tokens=1, seed=1),
)
SOUND = TranscriptionJob(id="s", path="/u/e", max_seconds=1.0)


@pytest.mark.parametrize(
    ("job", "found"),
    [(IMAGE, ["/u/a", "/u/b"]), (CHAT, ["/u/c", "/u/d"]), (SOUND, ["/u/e"])],
)
def test_inputs_of_jobs_are_renamed_for_the_machine_that_runs_them(
    job: ImageJob | TextJob | TranscriptionJob, found: list[str]
) -> None:
    assert list(inputs_of(job)) == found
    there = with_files(job, lambda path: path.replace("/u/", "/there/"), "/made")
    assert list(inputs_of(there)) == [path.replace("/u/", "/there/") for path in found]


def test_results_of_jobs_are_made_in_the_folder_of_the_worker() -> None:
    job = SpeechJob(id="s", text="hello", seed=1, folder="/f")
    for each in (IMAGE, job):
        there = with_files(each, str, "/made")
        assert isinstance(there, ImageJob | SpeechJob)
        assert there.folder == "/made"
    done = SpeechDone(id="s", format="wav", bytes=7, sample_rate=8, duration=1, sentences=1)
    assert results_of(done) == [("s-0.wav", 7)]
    image = ImageFile(width=8, height=8, seed=1, format="png", bytes=9)
    ended = ImageDone(id="i", images=(image, image), steps=1, scheduler="s")
    assert results_of(ended) == [("i-0.png", 9), ("i-1.png", 9)]


def test_load_is_refused_where_its_files_are_not_or_may_not_be_read(tmp_path: Path) -> None:
    roots, model = (str(tmp_path / "models"),), tmp_path / "models" / "m"
    load = Load(model="m", engine="text", path=str(model))
    assert "does not have the files of m" in (load_refusal(load, "n1", roots) or "")
    model.mkdir(parents=True)
    assert load_refusal(load, "n1", roots) is None
    (tmp_path / "secret").touch()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", tmp_path / "models" / "link", model / ".." / ".." / "secret"):
        load = Load(model="m", engine="text", path=str(path))
        assert "may not load" in (load_refusal(load, "n1", roots) or "")
