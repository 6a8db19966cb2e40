"""The speech engine on a tiny Bark: each sentence is the one that the library says."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from tests.support.engine_runs import finals
from tests.support.models.bark import VOICES
from tests.support.speech_harness import LINES, SpeechHarness, open_speech_harness
from workers.engines.base import Refused
from workers.engines.speech.bark.model import Bark, BarkUtterance
from workers.engines.speech.bark.speaker import BarkSpeaker
from workers.engines.speech.joining import Joiner
from workers.engines.speech.sentences import split_sentences
from workers.protocol import (
    AudioDelta,
    Cancelled,
    Event,
    Failed,
    Progress,
    SpeechDone,
    Started,
    audio_file_name,
)


@pytest.fixture(scope="module", params=["sampled", "greedy"])
def sampled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "sampled")


@pytest.fixture(scope="module")
def module_harness(
    sampled: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SpeechHarness]:
    harness = open_speech_harness(tmp_path_factory.mktemp("speech"), sampled=sampled)
    yield harness
    harness.engine.close()


@pytest.fixture
def harness(module_harness: SpeechHarness) -> Iterator[SpeechHarness]:
    yield module_harness
    assert module_harness.engine.in_flight == 0


def said(harness: SpeechHarness, text: str, seed: int) -> Any:
    try:
        return harness.library(text, VOICES[0], seed)
    except RuntimeError:  # a sentence of no tokens, which the library's codec does not take
        return np.zeros(0, np.float32)


def trimmed(samples: Any) -> Any:
    """Return one sentence's sound as it goes into the file."""
    joiner = Joiner(24_000)
    return np.concatenate([joiner.push(samples), joiner.finish()])


def utterance(harness: SpeechHarness, text: str, voice: str | None, seed: int) -> BarkUtterance:
    made = harness.engine._model.start(text, voice, None, seed)
    assert isinstance(made, BarkUtterance)
    return made


def test_library_sounds_differ_by_text_and_voice(harness: SpeechHarness) -> None:
    """Check the tests themselves: with equal sounds the others would compare nothing."""
    asked = [
        ("Hello there.", VOICES[0]),
        ("Something else", VOICES[0]),
        ("Hello there.", VOICES[1]),
    ]
    sounds = [harness.library(text, voice, 3) for text, voice in asked]
    for n, one in enumerate(sounds):
        for other in sounds[:n]:
            length = min(len(one), len(other))
            assert np.abs(one[:length] - other[:length]).max() > 0.001


def test_bark_alone_is_the_library_s_bit_for_bit(harness: SpeechHarness) -> None:
    model = harness.engine._model
    assert isinstance(model, BarkSpeaker)
    bark = model.bark  # its layers packed, as they are served
    for seed, (text, voice) in enumerate(LINES):
        one = utterance(harness, text, voice, seed)
        while one.stage != "done":
            bark.step([one])
        assert one.samples is not None
        assert np.array_equal(one.samples, harness.library(text, voice, seed))
    assert bark.rows_used == 0


def test_bark_beside_other_voices_and_seeds_gives_the_same(harness: SpeechHarness) -> None:
    bark = Bark(harness.model, 2)  # fewer rows than sentences: some wait
    lines = [utterance(harness, text, voice, seed) for seed, (text, voice) in enumerate(LINES)]
    while any(each.stage != "done" for each in lines):
        bark.step([each for each in lines if each.stage != "done"])
    for seed, ((text, voice), one) in enumerate(zip(LINES, lines, strict=True)):
        expected = harness.library(text, voice, seed)
        assert one.samples is not None
        assert one.samples.shape == expected.shape
        assert np.abs(one.samples - expected).max() < 1e-5


def test_file_is_its_sentences_joined(harness: SpeechHarness) -> None:
    job = harness.job("Hello there. How are you? Fine!")
    [spoken] = finals(harness.run(job)).values()
    assert isinstance(spoken, SpeechDone)
    joiner = Joiner(24_000)
    parts = ["Hello there.", "How are you?", "Fine!"]
    alone = [harness.library(text, VOICES[0], 3 + n) for n, text in enumerate(parts)]
    expected = np.concatenate([*(joiner.push(each) for each in alone), joiner.finish()])
    assert np.abs(harness.sound(job) - expected * 32767).max() <= 2
    assert spoken.duration == pytest.approx(len(expected) / 24_000)
    assert (spoken.sentences, spoken.voice) == (3, VOICES[0])
    longest = sum(map(len, alone)) / 24_000
    assert longest - 0.05 * len(alone) <= spoken.duration <= longest


def test_text_of_2000_characters_is_one_file_of_all_its_sentences(tmp_path: Path) -> None:
    harness = open_speech_harness(tmp_path, sampled=True, tokens=8)
    text = " ".join(f"This is sentence number {number} of many." for number in range(49))
    text += " " + "x" * (1998 - len(text)) + "."
    assert len(text) == 2000
    pieces = split_sentences(text, harness.engine._model.fits)
    job = harness.job(text)
    [spoken] = finals(harness.run(job)).values()
    assert isinstance(spoken, SpeechDone)
    assert spoken.sentences == len(pieces) >= 50
    rate, fade = spoken.sample_rate, 0.02
    alone = [trimmed(said(harness, piece, 3 + n)) for n, piece in enumerate(pieces)]
    total = sum(map(len, alone)) / rate
    assert total - fade * len(alone) <= spoken.duration <= total
    assert len(harness.sound(job)) == round(spoken.duration * rate)
    harness.engine.close()


def test_first_audio_comes_before_the_second_sentence_begins(harness: SpeechHarness) -> None:
    job = harness.job("Hello there. How are you? Fine!")
    harness.submit(job)
    events: list[Event] = []
    while not any(isinstance(each, AudioDelta) for each in events):
        assert len(harness.engine._requests[job.id].waiting) >= 2
        events += harness.engine.step()
    events += harness.run()
    assert isinstance(events[0], Started)
    sounds = [each for each in events if isinstance(each, AudioDelta)]
    assert [each.index for each in sounds] == list(range(len(sounds)))
    streamed = np.frombuffer(b"".join(each.samples for each in sounds), "<i2").astype(int)
    assert np.abs(streamed - harness.sound(job)).max() <= 1
    steps = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_seed_gives_the_same_sound_beside_any_other_job(harness: SpeechHarness) -> None:
    alone, beside = harness.job(seed=9), harness.job(seed=9)
    harness.run(alone)
    harness.run(harness.job("Other words", voice=VOICES[2]), beside, harness.job("More. Of it."))
    assert np.array_equal(harness.sound(alone), harness.sound(beside))


def test_stream_off_leaves_only_start_and_final_event(harness: SpeechHarness) -> None:
    events = harness.run(harness.job("Hello there. Fine!", stream=False))
    assert [type(each) for each in events] == [Started, SpeechDone]


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
def test_format_of_every_kind_holds_the_sound(harness: SpeechHarness, form: str) -> None:
    job = harness.job(format=form)
    [spoken] = finals(harness.run(job)).values()
    assert isinstance(spoken, SpeechDone)
    path = harness.folder / audio_file_name(job.id, form)
    assert path.stat().st_size == spoken.bytes
    with soundfile.SoundFile(io.BytesIO(path.read_bytes())) as found:
        assert (found.channels, found.samplerate) == (1, 24_000)
        assert found.frames / 24_000 == pytest.approx(spoken.duration, abs=0.06)
        assert found.comment == "Made by a machine (text to speech)"


@pytest.mark.parametrize("steps", [1, 20, 60, 130])
def test_cancel_ends_within_a_step_and_leaves_nothing(harness: SpeechHarness, steps: int) -> None:
    job = harness.job("Hello there. How are you? Fine!")
    harness.submit(job)
    for _ in range(steps):
        harness.engine.step()
    harness.engine.cancel(job.id)
    harness.engine.cancel("nobody")
    [cancelled] = harness.engine.step()
    assert isinstance(cancelled, Cancelled)
    assert not any(harness.engine.books().values())
    assert not list(harness.folder.glob(f"{job.id}*"))
    again, expected = harness.job(), harness.library("Hello there.", VOICES[0], 3)
    harness.run(again)
    assert np.abs(harness.sound(again) - expected * 32767).max() <= 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"voice": "../secret"}, "INVALID_REQUEST", "voice"),
        ({"voice": "speaker_7", "language": "en"}, "INVALID_REQUEST", "voice"),
        ({"language": "xx"}, "INVALID_REQUEST", "language"),
        ({"speed": 2.0}, "UNSUPPORTED_PARAMETER", "speed"),
    ],
)
def test_job_that_the_model_cannot_do_is_refused(
    harness: SpeechHarness, fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(Refused) as refused:
        harness.engine.prepare(harness.job(**fields))
    assert (refused.value.code, refused.value.param) == (code, param)
    if param == "voice":
        assert refused.value.details["voices"] == sorted(VOICES)


def test_voice_names_mean_presets(harness: SpeechHarness) -> None:
    model = harness.engine._model
    assert isinstance(model, BarkSpeaker)
    voices = model.voices
    assert voices.resolve("speaker_1", "en") == "v2/en_speaker_1"
    assert voices.resolve("speaker_0", "de") == "v2/de_speaker_0"
    assert voices.resolve("en_speaker_0", None) == "v2/en_speaker_0"
    assert voices.resolve(None, "de") == "v2/de_speaker_0"
    assert voices.resolve(None, None) is None


def test_long_sentence_is_spoken_in_pieces(harness: SpeechHarness) -> None:
    words = "a word and another one, " * 10
    [spoken] = finals(harness.run(harness.job(words))).values()
    assert isinstance(spoken, SpeechDone)
    assert spoken.sentences > 3


def test_disk_that_takes_nothing_fails_the_job_by_name(harness: SpeechHarness) -> None:
    [failed] = finals(
        harness.run(msgspec.structs.replace(harness.job(), folder="/nowhere"))
    ).values()
    assert isinstance(failed, Failed)
    assert failed.code == "DISK_FULL"
