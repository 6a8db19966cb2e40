"""VITS and SpeechT5 through the speech engine: the library's own sound, from the same seed."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoTokenizer,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    VitsModel,
)

from tests.support.engine_runs import run_to_end
from tests.support.models.voices import WIDTH, make_speecht5, make_vits, make_vocoder
from workers.engines.base import Refused
from workers.engines.speech.engine import SpeechEngine
from workers.engines.speech.joining import Joiner
from workers.engines.speech.model import unknown_voice
from workers.protocol import (
    Event,
    Failed,
    Load,
    SpeechDone,
    SpeechJob,
    SpeechOptions,
    audio_file_name,
)

RATE = 16_000


@dataclass
class FamilyHarness:
    folder: Path
    engine: SpeechEngine
    jobs: int = field(default=0)

    def job(self, text: str = "hello there", **fields: Any) -> SpeechJob:
        self.jobs += 1
        fields = {"seed": 3, "folder": str(self.folder), **fields}
        return SpeechJob(id=f"job{self.jobs}", text=text, **fields)

    def run(self, *jobs: SpeechJob) -> list[Event]:
        return run_to_end(self.engine, *jobs)

    def sound(self, job: SpeechJob) -> Any:
        [spoken] = [each for each in self.run(job) if isinstance(each, SpeechDone)]
        samples, rate = soundfile.read(
            self.folder / audio_file_name(job.id, "wav"), dtype="float32"
        )
        assert rate == spoken.sample_rate
        return samples


def open_family(folder: Path, spec: Load) -> FamilyHarness:
    engine = SpeechEngine()
    engine.load(spec, lambda _: None)
    folder.mkdir(exist_ok=True)
    return FamilyHarness(folder, engine)


def spec_of(path: Path, **fields: Any) -> Load:
    return Load(model="m", engine="speech", path=str(path), threads=1, **fields)


def joined(*sentences: Any) -> Any:
    joiner = Joiner(RATE)
    return np.concatenate([*(joiner.push(each) for each in sentences), joiner.finish()])


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FamilyHarness]:
    folder = tmp_path_factory.mktemp("vits")
    path = make_vits(folder / "vits", speakers=3)
    return path, open_family(folder / "out", spec_of(path))


def vits_sound(path: Path, text: str, seed: int, speaker: int, rate: float = 1.0) -> Any:
    model, tokenizer = VitsModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    with torch.no_grad():
        asked = tokenizer(text, return_tensors="pt")
        return model(**asked, speaker_id=speaker, speaking_rate=rate).waveform[0].numpy()


@pytest.mark.parametrize(("voice", "number"), [("speaker_2", 2), (None, 0)])
def test_vits_is_the_library_s_with_each_voice(
    vits: tuple[Path, FamilyHarness], voice: str | None, number: int
) -> None:
    path, harness = vits
    found = harness.sound(harness.job("hello there. how are you", voice=voice))
    sentences = ["hello there.", "how are you"]
    alone = [vits_sound(path, text, 3 + n, number) for n, text in enumerate(sentences)]
    expected = joined(*alone)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1 / 32_000


def test_vits_beside_others_is_the_same(vits: tuple[Path, FamilyHarness]) -> None:
    path, harness = vits
    ours, others = (
        harness.job(voice="speaker_1", seed=9),
        harness.job("more. of it. and more", seed=1),
    )
    harness.run(others, ours)
    found, _ = soundfile.read(harness.folder / audio_file_name(ours.id, "wav"), dtype="float32")
    assert np.abs(found - joined(vits_sound(path, ours.text, 9, 1))).max() < 1 / 32_000


def test_fairness_lets_a_short_request_end_before_a_long_one(
    vits: tuple[Path, FamilyHarness],
) -> None:
    _, harness = vits
    long, short = harness.job("one. " * 20), harness.job("two.")
    ended = [each.id for each in harness.run(long, short) if isinstance(each, SpeechDone)]
    assert ended == [short.id, long.id]


def test_speed_is_the_model_s_own(vits: tuple[Path, FamilyHarness]) -> None:
    path, harness = vits
    fast = harness.sound(harness.job(voice="speaker_0", speed=2.0))
    assert np.abs(fast - joined(vits_sound(path, "hello there", 3, 0, rate=2.0))).max() < 1 / 32_000
    slow = harness.sound(harness.job(voice="speaker_0", speed=0.5))
    assert len(slow) > 1.5 * len(fast)


@pytest.mark.parametrize("language", ["eng", "en"])
def test_language_of_the_model_may_be_named(
    vits: tuple[Path, FamilyHarness], language: str
) -> None:
    _, harness = vits
    assert len(harness.sound(harness.job(language=language)))


@pytest.mark.parametrize(
    ("fields", "param", "details"),
    [
        ({"voice": "speaker_3"}, "voice", {"voices": ["speaker_0", "speaker_1", "speaker_2"]}),
        ({"language": "de"}, "language", {"languages": ["eng"]}),
        ({"text": "hello. 123."}, "text", {}),
        ({"format": "ogg", "sample_rate": 11_025}, "sample_rate", {}),
    ],
)
def test_vits_refuses_what_it_cannot_do(
    vits: tuple[Path, FamilyHarness], fields: dict[str, Any], param: str, details: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as refused:
        vits[1].engine.prepare(vits[1].job(**fields))
    assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", param)
    assert refused.value.details == details


def test_romanisation_of_other_scripts_where_the_model_wants_it(
    tmp_path: Path,
) -> None:
    path = make_vits(tmp_path / "m", language="kor")
    config = path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"is_uroman": false', '"is_uroman": true'))
    harness = open_family(tmp_path / "out", spec_of(path))
    assert np.array_equal(
        harness.sound(harness.job("안녕")), harness.sound(harness.job("annyeong"))
    )


def test_load_of_a_model_that_reads_phonemes_is_refused(tmp_path: Path) -> None:
    path = make_vits(tmp_path / "m")
    config = path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"phonemize": false', '"phonemize": true'))
    with pytest.raises(Refused, match="phonemes"):
        SpeechEngine().load(spec_of(path), lambda _: None)


# ---- rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 24_000, 44_100])
def test_sample_rate_is_the_one_of_the_request(vits: tuple[Path, FamilyHarness], rate: int) -> None:
    _, harness = vits
    own = harness.sound(harness.job("hello there. how are you"))
    job = harness.job("hello there. how are you", sample_rate=rate)
    found = harness.sound(job)
    assert len(found) == pytest.approx(len(own) * rate / RATE, abs=2)


# ---- SpeechT5 ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, FamilyHarness]:
    folder = tmp_path_factory.mktemp("t5")
    path, vocoder = make_speecht5(folder / "t5"), make_vocoder(folder / "vocoder")
    more = folder / "carl.npy"
    np.save(more, np.ones(WIDTH, np.float32))
    options = SpeechOptions(vocoder=str(vocoder), voices={"carl": str(more)})
    return path, vocoder, open_family(folder / "out", spec_of(path, speech=options))


@pytest.mark.parametrize("voice", ["anna", "bert", "carl", None])
def test_speecht5_is_the_library_s(t5: tuple[Path, Path, FamilyHarness], voice: str | None) -> None:
    path, vocoder, harness = t5
    model = SpeechT5ForTextToSpeech.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(5)
    vector = np.ones(WIDTH, np.float32)
    if voice != "carl":
        vector = np.load(path / "speaker_embeddings" / f"{voice or 'anna'}.npy")
    expected = model.generate_speech(
        tokenizer("hello there", return_tensors="pt").input_ids,
        torch.from_numpy(vector)[None],
        vocoder=SpeechT5HifiGan.from_pretrained(vocoder).eval(),
    ).numpy()
    found = harness.sound(harness.job(voice=voice, seed=5))
    assert np.abs(found - joined(expected)).max() < 1 / 32_000


@pytest.mark.parametrize("name", ["speed", "language"])
def test_speecht5_refuses_by_name_what_it_does_not_have(
    t5: tuple[Path, Path, FamilyHarness], name: str
) -> None:
    value: Any = {"speed": 2.0, "language": "en"}[name]
    with pytest.raises(Refused) as refused:
        t5[2].engine.prepare(t5[2].job(**{name: value}))
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", name)


def test_voice_that_is_unknown_lists_those_of_the_files_and_of_the_settings(
    t5: tuple[Path, Path, FamilyHarness],
) -> None:
    with pytest.raises(Refused) as refused:
        t5[2].engine.prepare(t5[2].job(voice="../anna"))
    assert refused.value.details == {"voices": ["anna", "bert", "carl"]}


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "one voice only, which has no name."),
        (12, "it has v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11."),
        (130, "v11 and 118 more, which details lists."),
    ],
)
def test_voice_error_names_as_many_voices_as_can_be_read(count: int, said: str) -> None:
    names = [f"v{number}" for number in range(count)]
    refused = unknown_voice(names)
    assert refused.message.endswith(said)
    assert refused.details == {"voices": names}


@pytest.mark.parametrize("options", [{"vocoder": "/v"}, {"voices": {"carl": "/c.npy"}}])
def test_settings_of_speecht5_are_refused_for_others(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    spec = spec_of(make_vits(tmp_path / "m"), speech=SpeechOptions(**options))
    with pytest.raises(Refused, match="Only SpeechT5 takes"):
        SpeechEngine().load(spec, lambda _: None)


@pytest.mark.parametrize("fault", ["no vocoder", "no voices", "bad voice", "other model"])
def test_load_that_fails_says_what_to_do(
    t5: tuple[Path, Path, FamilyHarness], tmp_path: Path, fault: str
) -> None:
    path, vocoder, _ = t5
    copied = shutil.copytree(path, tmp_path / "copy")
    options = SpeechOptions(vocoder=None if fault == "no vocoder" else str(vocoder))
    wanted = {"no vocoder": "speech.vocoder", "no voices": "speech.voices"}.get(fault, "bert")
    if fault == "no voices":
        shutil.rmtree(copied / "speaker_embeddings")
    if fault == "bad voice":
        np.save(copied / "speaker_embeddings" / "bert.npy", np.zeros(3, np.float32))
    if fault == "other model":
        config = copied / "config.json"
        config.write_text(config.read_text().replace('"speecht5"', '"musicgen"'))
        wanted = "musicgen"
    with pytest.raises(Refused, match=wanted) as refused:
        SpeechEngine().load(spec_of(copied, speech=options), lambda _: None)
    assert refused.value.code == "MODEL_LOAD_FAILED"


def test_disk_that_takes_nothing_fails_the_job_by_name(
    t5: tuple[Path, Path, FamilyHarness],
) -> None:
    [failed] = [e for e in t5[2].run(t5[2].job(folder="/nowhere")) if isinstance(e, Failed)]
    assert failed.code == "DISK_FULL"
