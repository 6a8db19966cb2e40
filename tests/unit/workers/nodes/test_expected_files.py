"""Files that a worker on another machine may send: by the jobs that it was sent."""

import msgspec
import pytest

from workers import framing
from workers.framing import BadFrame, encode_commands, encode_frame
from workers.nodes.expected_files import ExpectedFiles
from workers.nodes.messages import File
from workers.protocol import (
    Cancel,
    Cancelled,
    Command,
    ImageJob,
    Sampling,
    SpeechJob,
    TextJob,
    image_file_name,
)

IMAGE = ImageJob(id="i", prompt="a", width=8, height=8, steps=1, seeds=(1, 2), folder="/f")
SPEECH = SpeechJob(id="s", text="a speech", seed=1, folder="/f")


def announced(name: str, size: int = 1) -> bytes:
    return msgspec.msgpack.encode(File(name=name, size=size))


def test_file_of_a_job_that_runs_is_expected_once() -> None:
    expected = ExpectedFiles()
    expected.sent(encode_commands([Cancel(id="x"), IMAGE, SPEECH]))
    name = image_file_name("i", 1, "png")
    expected.check(announced(name))
    with pytest.raises(BadFrame, match="no job that runs"):
        expected.check(announced(name))
    with pytest.raises(BadFrame, match="larger"):
        expected.check(announced(image_file_name("i", 0, "png"), 1 << 30))
    expected.told(encode_frame([Cancelled(id="s")]))
    with pytest.raises(BadFrame, match="no job that runs"):
        expected.check(announced("s.wav"))


def test_long_text_is_not_decoded_to_look_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = framing.decode_command

    def noted(command: msgspec.Raw) -> Command:
        decoded.append(bytes(command))
        return decode(command)

    monkeypatch.setattr("workers.nodes.expected_files.decode_command", noted)
    text = TextJob(id="t", prompt="an image", sampling=Sampling(max_tokens=1))
    expected = ExpectedFiles()
    expected.sent(encode_commands([text, IMAGE]))
    assert [msgspec.msgpack.decode(each)["id"] for each in decoded] == ["i"]
    expected.check(announced(image_file_name("i", 0, "png")))
