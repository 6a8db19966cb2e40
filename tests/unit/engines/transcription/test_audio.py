"""Uploads to samples and to features: every usual format, and everything that is none."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from transformers import WhisperFeatureExtractor

from tests.support.audio import RATE, melody, wav, write
from workers.engines.base import Refused
from workers.engines.transcription.audio import Bounds, Samples, read
from workers.engines.transcription.features import LogMel

BLOCK = 30 * RATE
SOUND, LONG_SOUND = melody(2), melody(65)


def whole(path: Path, max_seconds: float = 60.0) -> Samples:
    return np.concatenate(list(read(path, RATE, bounds(max_seconds), block=BLOCK)))


def bounds(seconds: float = 60.0) -> Bounds:
    return Bounds(seconds, channels=8, sample_rate=768_000)


def coded(path: Path, codec: str, **options: str) -> Path:
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else RATE)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(SOUND[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for each in (frame, None):
            container.mux(stream.encode(each))
    return path


# ---- what can be read --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.au", "a.w64", "a.caf"])
def test_audio_of_lossless_formats_is_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert np.array_equal(whole(write(tmp_path / name, SOUND)), SOUND)


def test_audio_format_is_not_told_by_the_file_s_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", SOUND).rename(tmp_path / "upload")
    assert np.array_equal(whole(path), SOUND)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.aac", "aac"),
        ("a.ogg", "libopus"),
        ("a.webm", "libopus"),
        ("alac.m4a", "alac"),
    ],
)
def test_audio_of_other_formats_sounds_alike(tmp_path: Path, name: str, codec: str) -> None:
    found = whole(coded(tmp_path / name, codec))
    assert abs(len(found) - len(SOUND)) < RATE / 5
    loudness = [float(np.sqrt(np.mean(each**2))) for each in (found, SOUND)]
    assert loudness[0] == pytest.approx(loudness[1], rel=0.1)


def test_audio_of_vorbis_sounds_alike(tmp_path: Path) -> None:
    found = whole(write(tmp_path / "a.ogg", SOUND, format="OGG", subtype="VORBIS"))
    assert len(found) == len(SOUND)
    assert float(np.abs(found - SOUND).mean()) < float(np.abs(SOUND).mean()) / 4


def test_audio_of_telephones_sounds_alike(tmp_path: Path) -> None:
    """Mu-law, 8,000 samples in a second: what lies above 4 kHz is gone."""
    low = SOUND[::2]  # the same sound at half the rate
    found = whole(write(tmp_path / "a.wav", low, 8_000, subtype="ULAW"))
    assert len(found) == len(SOUND)
    assert float(np.abs(found[::2] - low).mean()) < float(np.abs(low).mean()) / 5


def test_audio_as_browsers_record_it_is_read_whole(tmp_path: Path) -> None:
    """A WebM file written without going back has no duration in its header."""
    recorded = coded(tmp_path / "a.webm", "libopus", live="1")
    with av.open(recorded) as container:
        assert container.duration is None
    assert abs(len(whole(recorded.rename(tmp_path / "a.mp3"))) - len(SOUND)) < RATE / 5


@pytest.mark.parametrize("flags", ["", "faststart"])
def test_audio_of_mp4_is_read_wherever_its_index_is(tmp_path: Path, flags: str) -> None:
    path = coded(tmp_path / "a.m4a", "aac", **({"movflags": flags} if flags else {}))
    data = path.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == bool(flags)
    assert abs(len(whole(path)) - len(SOUND)) < RATE / 5


def test_audio_of_ten_milliseconds_is_read(tmp_path: Path) -> None:
    short = SOUND[: RATE // 100]
    assert np.array_equal(whole(write(tmp_path / "a.wav", short)), short)


def test_audio_becomes_one_channel_of_the_model_s_rate(tmp_path: Path) -> None:
    time = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 440 * time) * 0.5
    path = write(tmp_path / "a.wav", np.stack([tone, tone], axis=1), 48_000)
    found = whole(path)
    assert len(found) == RATE
    spectrum = np.abs(np.fft.rfft(found))
    assert int(spectrum.argmax()) == 440
    assert float(np.abs(found).max()) == pytest.approx(0.5, rel=0.05)


def test_audio_of_loud_channels_is_not_too_loud(tmp_path: Path) -> None:
    loud = np.stack([SOUND / np.abs(SOUND).max() * 0.9] * 6, axis=1)
    found = whole(write(tmp_path / "a.wav", loud))
    assert 0.5 < float(np.abs(found).max()) < 0.95


def test_audio_with_floats_that_are_no_numbers_does_no_harm(tmp_path: Path) -> None:
    strange = np.array([0.5, np.nan, np.inf, -np.inf, 7.0, -0.5], np.float32)
    found = whole(write(tmp_path / "a.wav", strange, subtype="FLOAT"))
    assert (found[0], found[-1]) == (0.5, -0.5)
    assert (np.abs(found) <= 1).all()


def test_audio_with_a_damaged_end_is_read_up_to_it(tmp_path: Path) -> None:
    path = coded(tmp_path / "a.mp3", "libmp3lame")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert RATE / 2 < len(whole(path)) < len(SOUND)


def test_audio_blocks_are_of_the_size_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", SOUND)
    assert [len(each) for each in read(path, RATE, bounds(), block=9000)] == [
        9000,
        9000,
        9000,
        5000,
    ]


# ---- what cannot -------------------------------------------------------------------------------

BROKEN = {
    "empty": (b"", "is not a sound file"),
    "text": (b"hello there, this is not a sound\n" * 50, "is not a sound file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, "is not a sound file"),
    "zeros": (b"\0" * 5000, "is not a sound file"),
    "header only": (wav(data=b""), "holds no sound"),
    "cut header": (wav()[:20], "is not a sound file"),
    "no rate": (wav(rate=0), "is not a sound file"),
    "low rate": (wav(rate=10), "has 10 samples in a second"),
    "high rate": (wav(rate=2_000_000_000), "samples in a second"),
    "many channels": (wav(channels=100), "has 100 channels"),
    "playlist": (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "is not a sound"),
    "list to join": (b"ffconcat version 1.0\nfile other.wav\n", "is not a sound file"),
    "damaged": (b"fLaC" + bytes(range(256)) * 50, "is not a sound file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_audio_that_is_invalid_is_refused(tmp_path: Path, kind: str) -> None:
    data, message = BROKEN[kind]
    (tmp_path / "upload").write_bytes(data)
    write(tmp_path / "other.wav", SOUND)
    with pytest.raises(Refused, match=message) as refusal:
        whole(tmp_path / "upload")
    assert refusal.value.code == "INVALID_REQUEST"
    assert refusal.value.param == "file"
    assert str(tmp_path) not in refusal.value.message


def test_audio_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can be read"):
        whole(tmp_path / "nothing")


def test_audio_of_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(64, 64, "yuv420p")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(Refused, match="holds no sound"):
        whole(path)


def test_audio_length_is_counted_and_not_read_from_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", SOUND)
    assert len(whole(path, 2.0)) == len(SOUND)
    with pytest.raises(Refused, match=r"longer than 1\.9 seconds"):
        whole(path, 1.9)


def test_audio_bomb_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """Hours of silence take few bytes; neither time nor memory may go to what is refused."""
    path = write(tmp_path / "a.flac", np.zeros(3600 * RATE, np.int16))
    assert path.stat().st_size < 1_000_000
    blocks = read(path, RATE, bounds(65), block=BLOCK)
    assert [len(next(blocks)), len(next(blocks))] == [BLOCK, BLOCK]
    with pytest.raises(Refused, match="longer than 65 seconds"):
        next(blocks)


def test_audio_of_an_hour_is_never_held_as_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.zeros(1200 * RATE, np.int16))
    process = psutil.Process()
    for _ in read(path, RATE, bounds(), block=BLOCK):
        break
    before = process.memory_info().rss
    highest = max(process.memory_info().rss for _ in read(path, RATE, bounds(2000), block=BLOCK))
    assert highest - before < 40 * 2**20 < 1200 * RATE * 4


# ---- features ----------------------------------------------------------------------------------


def in_blocks(samples: Samples, size: int) -> Iterator[Samples]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 3, 29.99, 30, 30.003, 59.99, 60, 61.2345])
def test_features_are_the_library_s(seconds: float) -> None:
    extractor = WhisperFeatureExtractor()
    samples = LONG_SOUND[: max(1, round(seconds * RATE))]
    longer = len(samples) > BLOCK
    options = {"truncation": False, "padding": "longest"} if longer else {}
    expected = extractor(samples, sampling_rate=RATE, return_tensors="pt", **options)
    expected = expected.input_features[0]
    found = LogMel(extractor).record(in_blocks(samples, BLOCK))
    assert found.frames == expected.shape[1]
    assert found.seconds == len(samples) / RATE
    assert found.file_frames == max(1, len(samples) // 160)
    assert (found.window(0, found.frames) - expected).abs().max() < 1e-5
    start = min(found.frames - 1, 2950)
    window = found.window(start, 3000)
    rest = expected[:, start : start + 3000]
    assert (window[:, : rest.shape[1]] - rest).abs().max() < 1e-5
    assert not window[:, rest.shape[1] :].any()


def test_features_have_the_bins_of_the_extractor() -> None:
    extractor = WhisperFeatureExtractor(feature_size=128)
    expected = extractor(SOUND, sampling_rate=RATE, return_tensors="pt").input_features[0]
    found = LogMel(extractor).record(iter([SOUND])).window(0, 3000)
    assert found.shape == expected.shape == (128, 3000)
    assert (found - expected).abs().max() < 1e-5
