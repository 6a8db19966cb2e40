"""Sounds from other servers: what they are asked for, and what is taken for a sound."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from bitinglip.upstreams.answer import BadAnswer
from bitinglip.upstreams.sound import length_of
from bitinglip.upstreams.speech import speech_done, speech_request
from workers.engines.base import Refused
from workers.protocol import AudioDelta, Event, SpeechDone, SpeechJob

SAMPLES = bytes(range(250)) * 40


def job(folder: Path | str = "nowhere", **more: Any) -> SpeechJob:
    fields = {"text": "so it is", "seed": 7, "stream": False, **more}
    return SpeechJob(id="s", folder=str(folder), **fields)


def names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def wav(samples: bytes = SAMPLES, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(samples)
    return buffer.getvalue()


def received(
    job: SpeechJob, data: bytes, media_type: str = "audio/wav", size: int = 777
) -> tuple[SpeechDone, list[Event]]:
    told = list[Event]()

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    async def tell(events: list[Event]) -> None:
        told.extend(events)

    return asyncio.run(speech_done(job, media_type, parts(), tell)), told


def test_speech_request_asks_for_what_the_job_wants() -> None:
    path, body, _ = speech_request(job(), "m")
    assert path == "audio/speech"
    assert body == {"model": "m", "input": "so it is", "response_format": "wav", "seed": 7}
    given: dict[str, Any] = {
        "voice": "v",
        "speed": 1.5,
        "instructions": "calm",
        "language": "de",
        "sample_rate": 8000,
    }
    assert given.items() <= speech_request(job(**given), "m").body.items()
    streamed = speech_request(job(stream=True, sample_rate=24_000), "m").body
    assert (streamed["response_format"], "sample_rate" in streamed) == ("pcm", False)
    assert speech_request(job(format="ogg"), "m").body["response_format"] == "opus"
    with pytest.raises(Refused) as refused:
        speech_request(job(stream=True, format="mp3"), "m")
    assert refused.value.param == "format"


@pytest.mark.parametrize("size", [1, 44, 100_000])
def test_speech_answer_becomes_a_file_and_a_stream(tmp_path: Path, size: int) -> None:
    data = wav() if size > 1 else wav(SAMPLES[:100])
    done, told = received(job(tmp_path / "files", stream=True), data, size=size)
    (path,) = (tmp_path / "files").iterdir()
    samples, rate = soundfile.read(path, dtype="int16")
    assert (path.name, path.stat().st_size, rate) == ("s-0.wav", done.bytes, 16_000)
    deltas = [each for each in told if isinstance(each, AudioDelta)]
    assert b"".join(each.samples for each in deltas) == samples.tobytes()
    assert [each.index for each in deltas] == [*range(len(told))]
    assert done.duration == len(samples) / 16_000
    assert soundfile.SoundFile(path).comment.startswith("Made by a machine")
    quiet, _ = received(job(tmp_path, metadata=False), data)
    assert quiet.bytes == len(data)


def test_speech_answer_of_unknown_length_is_as_long_as_it_is(tmp_path: Path) -> None:
    for told in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        data = wav().replace(len(SAMPLES).to_bytes(4, "little"), told.to_bytes(4, "little"))
        assert received(job(tmp_path), data)[0].duration == len(SAMPLES) / 2 / 16_000
    bare, _ = received(job(tmp_path, stream=True, sample_rate=24_000), SAMPLES + b"!", "audio/pcm")
    assert (bare.sample_rate, bare.duration) == (24_000, len(SAMPLES) / 2 / 24_000)


def compressed(kind: str) -> bytes:
    sound = np.sin(np.arange(24_000) / 20).astype(np.float32)
    buffer = io.BytesIO()
    if kind == "aac":
        with av.open(buffer, "w", format="adts") as container:
            stream = container.add_stream("aac", rate=24_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate = 24_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        subtype = {"mp3": "MPEG_LAYER_III", "ogg": "OPUS", "flac": "PCM_16"}[kind]
        soundfile.write(buffer, sound, 24_000, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["mp3", "ogg", "flac", "aac"])
def test_speech_answer_s_duration_is_told_by_its_frames(tmp_path: Path, kind: Any) -> None:
    data = compressed(kind)
    done, told = received(job(tmp_path, format=kind), data, "audio/mpeg")
    assert (tmp_path / f"s-0.{kind}").read_bytes() == data
    assert done.duration == pytest.approx(1, abs=0.15)
    assert not told
    for bad in (b"", b"\0" * 100, data[1:], wav()):
        with pytest.raises(BadAnswer):
            length_of(io.BytesIO(bad), kind, 60.0)
    assert [each.name for each in tmp_path.iterdir()] == [f"s-0.{kind}"]


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        ("aac", b"\xff\xf1\x18\x00\x00\xe0\x00"),
        ("mp3", b"\xff\xf3\x14\x00" + bytes(20)),
        ("ogg", b"OggS" + bytes(23)),
    ],
)
def test_speech_answer_of_countless_small_frames_is_read_no_further_than_its_text_may_last(
    kind: Any, frame: bytes
) -> None:
    file = io.BytesIO((compressed("ogg")[:47] if kind == "ogg" else b"") + frame * 200_000)
    with pytest.raises(BadAnswer, match="than the text can"):
        length_of(file, kind, 10.0)
    assert file.tell() < len(frame) * 10_000


def endless(data: bytes) -> bytes:
    """Return a FLAC that says it lasts for weeks."""
    return data[:21] + b"\x0f\xff\xff\xff\xff" + data[26:]


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (b"", {}),
        (b'{"error": "no"}', {}),
        (wav(b""), {}),
        (wav()[:-2], {}),
        (wav()[:40], {}),
        (wav(channels=2), {}),
        (wav(width=1), {}),
        (wav(rate=100), {}),
        (wav(rate=22_050), {"sample_rate": 24_000}),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", {}),
        (b"RIFF\0\0\0\0WAVELIST\0\0\0\x70" + wav(), {}),
        (b"RIFF\0\0\0\0AVI " + wav(), {}),
        (wav(bytes(7_000_000)), {}),
        (wav(bytes(2_000_000), rate=8000), {}),
        (wav(), {"format": "mp3"}),
        (endless(compressed("flac")), {"format": "flac"}),
    ],
    ids=lambda each: str(each)[:30],
)
def test_speech_answer_that_is_no_sound_leaves_nothing(
    tmp_path: Path, data: bytes, more: dict[str, Any]
) -> None:
    with pytest.raises(BadAnswer):
        received(job(tmp_path, **more), data, size=100_000)
    assert not [*tmp_path.iterdir()]


def test_speech_answer_that_says_it_is_text_is_refused(tmp_path: Path) -> None:
    streamed = job(tmp_path, stream=True, sample_rate=24_000)
    with pytest.raises(BadAnswer):
        received(streamed, b'{"error": "no"}', "application/json")


def test_speech_answer_without_room_on_the_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Refused) as refused:
        received(job(tmp_path / "file"), wav())
    assert refused.value.code == "DISK_FULL"


def test_speech_answer_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        has_begun = asyncio.Event()

        async def parts() -> AsyncIterator[bytes]:
            yield wav()
            has_begun.set()
            await asyncio.Event().wait()

        async def tell(_: list[Event]) -> None:
            pass

        task = asyncio.create_task(speech_done(job(tmp_path), "audio/wav", parts(), tell))
        await has_begun.wait()
        assert names_in(tmp_path) == ["s-0.wav.part"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(check())
    assert not [*tmp_path.iterdir()]
