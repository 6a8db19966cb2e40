"""Folders that hold no Whisper that can be run: each is refused by a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support import audio
from tests.support.models import whisper
from workers.engines.base import Refused
from workers.engines.transcription.engine import TranscriptionEngine
from workers.protocol import Load, Ready, TranscriptionJob


def load(folder: Path, **fields: Any) -> Ready:
    spec = Load(model="w", engine="transcription", path=str(folder), threads=1, **fields)
    progress: list[float] = []
    ready = TranscriptionEngine().load(spec, progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    return ready


def test_load_tells_slots_device_and_dtype(tmp_path: Path) -> None:
    ready = load(whisper.make(tmp_path), max_batch=3, dtype="bfloat16")
    assert (ready.slots, ready.dtype, ready.device) == (3, "bfloat16", "cpu")
    assert ready.step_timeout > 0


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.1.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_timestamps(folder: Path) -> None:
    path = folder / "generation_config.json"
    found = json.loads(path.read_text())
    del found["no_timestamps_token_id"]
    path.write_text(json.dumps(found))


def index_out_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"proj_out.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, "missing"),
        (cut_short, "does not load"),
        (only_a_pickle, "no file model.safetensors"),
        (index_out_of_the_folder, "points out of"),
        (change("config.json", model_type="wav2vec2"), "Whisper family"),
        (change("config.json", auto_map={"AutoModel": "x.Y"}), "Whisper family"),
        (change("config.json", decoder_layers=100_000), "does not fit its weights"),
        (change("config.json", d_model=32), "does not load"),
        (without_timestamps, "does not load"),
        (change("generation_config.json", suppress_tokens=[9_999]), "does not fit"),
        (change("generation_config.json", alignment_heads=[[7, 0]]), "does not fit"),
        (change("generation_config.json", lang_to_id={"<|en|>": 60_000}), "does not fit"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_load_of_damaged_files_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = whisper.make(tmp_path / "whisper")
    damage(folder)
    with pytest.raises(Refused, match=message) as refusal:
        load(folder)
    assert refusal.value.code == "MODEL_LOAD_FAILED"
    assert str(tmp_path) not in refusal.value.message


def test_feature_bins_of_both_parts_must_agree(tmp_path: Path) -> None:
    folder = whisper.make(tmp_path)
    (preprocessor,) = (p for p in folder.glob("*processor_config.json"))
    found = json.loads(preprocessor.read_text())
    (found.get("feature_extractor") or found)["feature_size"] = 128
    preprocessor.write_text(json.dumps(found))
    with pytest.raises(Refused, match="does not fit its config"):
        load(folder)


def test_word_times_without_alignment_heads_are_refused(tmp_path: Path) -> None:
    engine = TranscriptionEngine()
    repository = whisper.make(tmp_path / "whisper", alignment_heads=None)
    spec = Load(model="w", engine="transcription", path=str(repository), threads=1)
    engine.load(spec, lambda _: None)
    path = str(audio.write(tmp_path / "a.wav", audio.melody(1)))
    engine.prepare(TranscriptionJob(id="a", path=path, timestamps="segment", max_seconds=9))
    with pytest.raises(Refused) as refusal:
        engine.prepare(TranscriptionJob(id="b", path=path, timestamps="word", max_seconds=9))
    assert (refusal.value.code, refusal.value.param) == ("UNSUPPORTED_PARAMETER", "timestamps")
