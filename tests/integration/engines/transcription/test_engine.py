"""The transcription engine on a tiny Whisper: it hears what the library hears, token for token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.audio import RATE, melody
from tests.support.models.whisper import END, FIRST_TIMESTAMP, IDS, LANGUAGES, POSITIONS
from tests.support.transcription_harness import (
    TranscriptionHarness,
    check_segments,
    check_together,
    open_transcription_harness,
    tokens_of,
)
from workers.engines.base import Refused
from workers.engines.transcription import decoding
from workers.engines.transcription.decoding import DecodeBatch
from workers.framing import FrameReader, decode_commands, encode_commands, encode_frame
from workers.protocol import (
    Cancelled,
    Event,
    Failed,
    Progress,
    SegmentDelta,
    Started,
    TranscriptionDone,
    TranscriptionJob,
)

SHORT, WINDOW, LONG, LONGER = melody(9, 1), melody(30), melody(50), melody(75)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TranscriptionHarness]:
    harness = open_transcription_harness(tmp_path_factory.mktemp("harness"))
    yield harness
    harness.engine.close()


@pytest.mark.parametrize("sound", [SHORT, WINDOW, LONGER], ids=["short", "window", "long"])
def test_segments_are_the_librarys(harness: TranscriptionHarness, sound: Any) -> None:
    check_segments(harness, sound)


def test_windows_of_a_long_file_are_the_library_s(harness: TranscriptionHarness) -> None:
    heard = harness.transcribe(LONGER, timestamps="segment")
    assert heard.segments[0].start < 30 < 60 < heard.segments[-1].end
    assert heard.text == "".join(segment.text for segment in heard.segments).strip()
    starts = [segment.start for segment in heard.segments]
    assert starts == sorted(starts)


def test_timestamps_off_reads_a_short_file_in_one_go(harness: TranscriptionHarness) -> None:
    heard = harness.transcribe(SHORT)
    assert tokens_of(heard.segments) == [harness.one_go(SHORT)]
    assert heard.segments[0].start == 0
    assert heard.segments[0].end == heard.duration == 9


def test_timestamps_off_uses_them_in_a_long_file_all_the_same(
    harness: TranscriptionHarness,
) -> None:
    assert tokens_of(harness.transcribe(LONG).segments) == harness.expected(LONG)


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_and_task_can_be_given(harness: TranscriptionHarness, language: str) -> None:
    options = {"language": language, "task": "translate"}
    heard = harness.transcribe(SHORT, timestamps="segment", **options)
    assert heard.language == language
    assert tokens_of(heard.segments) == harness.expected(SHORT, **options)
    named = {"de": "de-AT", "en": "english", "zh": "zh_Hant-TW"}[language]
    assert harness.transcribe(SHORT, language=named).language == language
    assert heard.language_name == {"de": "german", "en": "english", "zh": "chinese"}[language]


def test_logprobs_are_of_each_token_of_the_text(harness: TranscriptionHarness) -> None:
    heard = harness.transcribe(SHORT, logprobs=True)
    assert not harness.transcribe(SHORT).segments[0].logprobs
    for segment in heard.segments:
        written = b"".join(token for token, _ in segment.logprobs).decode(errors="replace")
        assert written == segment.text
        assert all(logprob <= 0 for _, logprob in segment.logprobs)


def test_language_is_the_one_that_the_library_finds(harness: TranscriptionHarness) -> None:
    found = set()
    for sound in (SHORT, WINDOW, *(melody(29, seed) for seed in range(2, 6))):
        features = harness.processor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        (token,) = harness.model.detect_language(features).tolist()
        language = harness.transcribe(sound).language
        assert language is not None
        assert IDS[f"<|{language}|>"] == token
        found.add(language)
    assert len(found) > 1


def test_prompt_is_read_before_each_window(harness: TranscriptionHarness) -> None:
    prompt = harness.processor.get_prompt_ids("a bad cab", return_tensors="pt")
    heard = harness.transcribe(LONG, prompt="a bad cab", timestamps="segment")
    assert tokens_of(heard.segments) == harness.expected(LONG, prompt_ids=prompt)
    assert tokens_of(heard.segments) != harness.expected(LONG)


def test_prompt_that_is_long_counts_by_its_end(harness: TranscriptionHarness) -> None:
    end = "".join(chr(97 + number % 26) for number in range(23))
    short = harness.transcribe(SHORT, prompt=f"x{end}")
    long = harness.transcribe(SHORT, prompt=f"what was said {'before ' * 50} x{end}")
    assert long.segments == short.segments != harness.transcribe(SHORT).segments


@pytest.mark.parametrize("sound", [LONG, melody(40, 1)], ids=["long", "with a short end"])
def test_word_times_are_the_library_s(harness: TranscriptionHarness, sound: Any) -> None:
    expected = harness.segments(sound, return_token_timestamps=True, language="en")
    heard = harness.transcribe(sound, timestamps="word", language="en")
    assert sum(len(segment.words) for segment in heard.segments) > len(heard.segments)
    for segment, found in zip(heard.segments, expected, strict=True):
        assert segment.tokens == found["tokens"]
        said = "".join(word.text for word in segment.words)
        assert said == segment.text.replace(" ", "")
        times = [
            time
            for token, time in zip(segment.tokens, found["token_timestamps"], strict=True)
            if token < END
        ]
        ends = [word.end for word in segment.words]
        assert ends[-1] == pytest.approx(float(times[-1]), abs=1e-4)
        assert all(any(abs(end - time) < 1e-4 for time in times) for end in ends)
        assert all(word.start <= word.end <= heard.duration for word in segment.words)


def test_word_times_change_nothing_for_later_jobs(
    harness: TranscriptionHarness,
) -> None:
    before = harness.transcribe(SHORT, timestamps="segment").segments
    harness.transcribe(SHORT, timestamps="word")
    assert harness.transcribe(SHORT, timestamps="segment").segments == before
    assert harness.engine._loaded.model.config._attn_implementation == "sdpa"


def test_batch_of_files_gives_each_its_own_text(harness: TranscriptionHarness) -> None:
    check_together(harness)


def test_segments_are_streamed_as_they_are_done(harness: TranscriptionHarness) -> None:
    job = harness.job(LONG, timestamps="segment")
    events = harness.run(job)
    assert isinstance(events[0], Started)
    final = events[-1]
    assert isinstance(final, TranscriptionDone)
    heard = [each for each in events if isinstance(each, SegmentDelta)]
    assert tuple(each.segment for each in heard) == final.segments
    assert [each.index for each in heard] == list(range(len(heard)))
    progress = [each for each in events if isinstance(each, Progress)]
    assert [each.steps for each in progress] == [50] * len(progress)
    steps = [each.step for each in progress]
    assert steps == sorted(set(steps))
    assert steps[-1] == 50
    assert events.index(progress[0]) < events.index(heard[-1])


def test_stream_off_leaves_only_start_and_final_event(harness: TranscriptionHarness) -> None:
    events = harness.run(harness.job(LONG, timestamps="segment", stream=False))
    assert [type(each) for each in events] == [Started, TranscriptionDone]


def test_cancel_ends_a_file_at_the_next_step_and_its_neighbour_goes_on(
    harness: TranscriptionHarness,
) -> None:
    alone = harness.transcribe(WINDOW, timestamps="segment")
    first, second = harness.job(LONG), harness.job(WINDOW, timestamps="segment")
    harness.submit(first, second)
    for _ in range(5):
        harness.engine.step()
    assert harness.engine.books()["rows"] == 2
    harness.engine.cancel(first.id)
    harness.engine.cancel("nobody")
    assert [e for e in harness.engine.step() if isinstance(e, Cancelled)] == [
        Cancelled(id=first.id)
    ]
    assert harness.engine.books()["rows"] == 1
    events = harness.run()
    assert [type(each) for each in events if each.id != second.id] == []  # type: ignore[union-attr]
    final = events[-1]
    assert isinstance(final, TranscriptionDone)
    assert tokens_of(final.segments) == tokens_of(alone.segments)


def test_cancel_of_a_file_that_has_not_begun(harness: TranscriptionHarness) -> None:
    job = harness.job(SHORT)
    harness.submit(job)
    harness.engine.cancel(job.id)
    assert harness.run() == [Cancelled(id=job.id)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "klingon"}, "language"),
        ({"language": "fr"}, "language"),
        ({"prompt": "a <|transcribe|> b"}, "prompt"),
    ],
)
def test_job_that_the_model_cannot_do_is_refused(
    harness: TranscriptionHarness, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(Refused) as refusal:
        harness.engine.prepare(harness.job(SHORT, **fields))
    assert refusal.value.code == "INVALID_REQUEST"
    assert refusal.value.param == param


def test_error_in_a_step_ends_its_own_files(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = harness.job(SHORT)

    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("index 5 is out of bounds")

    with monkeypatch.context() as patch:
        patch.setattr(harness.engine._loaded.model.model.encoder, "forward", fail)
        (final,) = [each for each in harness.run(job) if isinstance(each, Failed)]
    assert (final.id, final.code) == (job.id, "INFERENCE_FAILED")
    assert "bounds" not in final.message
    assert harness.transcribe(SHORT).text


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nan_from_the_model_ends_the_job(harness: TranscriptionHarness, temperature: float) -> None:
    weight = harness.engine._loaded.model.model.decoder.layer_norm.weight
    kept = weight.clone()
    job = harness.job(SHORT, temperature=temperature)
    weight.fill_(float("nan"))
    try:
        (final,) = [each for each in harness.run(job) if isinstance(each, Failed)]
    finally:
        weight.copy_(kept)
    assert (final.id, final.code) == (job.id, "INFERENCE_FAILED")
    assert final.message == "The model's output is not a number."


def test_protocol_carries_jobs_and_events_of_transcription(harness: TranscriptionHarness) -> None:
    job = harness.job(SHORT, timestamps="word", language="en", prompt="abc")
    assert decode_commands(encode_commands([job])) == [job]
    events = harness.run(job)
    assert FrameReader().feed(encode_frame(events)) == events


def test_language_other_than_that_of_an_english_model_is_refused(tmp_path: Path) -> None:
    harness = open_transcription_harness(tmp_path, several=False)
    heard = harness.transcribe(SHORT, timestamps="segment")
    assert heard.language == "en"
    assert tokens_of(heard.segments) == harness.expected(SHORT, task=None)
    (segment,) = harness.transcribe(SHORT, language="en").segments
    assert segment.tokens == harness.one_go(SHORT, task=None)
    for fields in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(Refused):
            harness.engine.prepare(harness.job(SHORT, **fields))


# ---- attempts that are not good enough ---------------------------------------------------------


def test_temperature_rises_after_a_poor_attempt(tmp_path: Path) -> None:
    harness = open_transcription_harness(
        tmp_path, logprob_threshold=-0.85, compression_ratio_threshold=1.3
    )
    heard = harness.transcribe(LONG, timestamps="segment")
    assert tokens_of(heard.segments) == harness.expected(LONG)
    assert len({segment.temperature for segment in heard.segments}) > 1
    assert harness.transcribe(LONG, timestamps="segment").segments == heard.segments


def test_silence_in_a_window_is_left_out(tmp_path: Path) -> None:
    harness = open_transcription_harness(tmp_path, logprob_threshold=0.0, no_speech_threshold=0.0)
    events = harness.run(harness.job(LONG, timestamps="segment"))
    assert harness.expected(LONG) == []
    final = events[-1]
    assert isinstance(final, TranscriptionDone)
    assert (final.text, final.segments, final.duration) == ("", (), 50)
    assert [each.step for each in events if isinstance(each, Progress)] == [30, 50]


def test_voice_activity_leaves_out_words_under_a_steady_sound(tmp_path: Path) -> None:
    """The model takes it for no speech, and is sure of its words all the same, as of silence."""
    harness = open_transcription_harness(tmp_path, no_speech_threshold=0.0)
    hum = 0.3 * np.sin(np.arange(9 * RATE) * 0.2)
    assert harness.transcribe(hum).text
    assert harness.transcribe(hum, voice_activity=True).segments == ()
    assert harness.transcribe(SHORT, voice_activity=True).text


def test_temperature_of_the_request_is_that_of_the_first_attempt(
    harness: TranscriptionHarness,
) -> None:
    heard = harness.transcribe(LONG, timestamps="segment", temperature=0.6)
    assert {segment.temperature for segment in heard.segments} == {0.6}
    assert tokens_of(heard.segments) != harness.expected(LONG)
    assert all(END not in segment.tokens for segment in heard.segments)


# ---- files that take long to decode ------------------------------------------------------------


def test_fairness_lets_a_short_file_end_before_a_long_one(harness: TranscriptionHarness) -> None:
    long, short = harness.job(np.tile(SHORT, 900), max_seconds=100_000.0), harness.job(SHORT)
    prepared = [harness.engine.prepare(job) for job in (long, short)]
    for each in prepared:
        harness.engine.submit(each)
    events: list[Event] = []
    while not any(each.id == short.id for each in events if isinstance(each, TranscriptionDone)):
        events += harness.engine.step()
    assert not prepared[0].recording.done(), "the long one must take longer than that"
    harness.engine.cancel(long.id)
    assert [type(each) for each in harness.engine.step()] == [Cancelled]
    assert not any(harness.engine.books().values())


def test_file_that_is_too_long_fails_by_name(harness: TranscriptionHarness) -> None:
    [failed] = harness.run(harness.job(SHORT, max_seconds=8.9))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("INVALID_REQUEST", "file")


def test_file_that_is_no_audio_fails_by_name(harness: TranscriptionHarness, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("not a sound")
    [failed] = harness.run(TranscriptionJob(id="a", path=str(path), max_seconds=9))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("INVALID_REQUEST", "file")


def test_loop_of_the_decoder_ends_its_attempt_early(
    harness: TranscriptionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times between the repetitions do not hide them, and the file is done all the same."""
    phrase, time, steps = [1, 2, 3], FIRST_TIMESTAMP + 20, 0

    def choose(batch: DecodeBatch, _scores: torch.Tensor) -> list[int]:
        nonlocal steps
        steps += 1
        tokens = []
        for attempt in batch.attempts:
            place = len(attempt.tokens) % 4
            tokens.append(time if place == 3 else phrase[place])
            attempt.tokens.append(tokens[-1])
            attempt.logprobs.append(-0.1)
        return tokens

    monkeypatch.setattr(decoding, "LOOP_TOKENS", 12)
    monkeypatch.setattr(DecodeBatch, "_choose", choose)
    events = harness.run(harness.job(SHORT, timestamps="segment"))
    assert isinstance(events[-1], TranscriptionDone)
    attempts = 6
    assert steps <= attempts * 24 < attempts * (POSITIONS - 4)
