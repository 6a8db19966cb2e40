"""Speech in half precision: what makes the sound computes in float32."""

from pathlib import Path

import pytest

from tests.support.engine_runs import finals, run_to_end
from tests.support.models import voices
from tests.support.models.weights import scale
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import Load, SpeechDone, SpeechJob, SpeechOptions

_FACTOR = 1e5


def order(family: str, folder: Path, dtype: str) -> Load:
    """Order a model of whose decoder the activations overflow in float16."""
    if family == "vits":
        vits = voices.make_vits(folder / "model")
        scale(vits, "decoder.conv_pre.weight", _FACTOR)
        return Load(model="m", engine="speech", path=str(vits), threads=1, dtype=dtype)
    vocoder = voices.make_vocoder(folder / "vocoder")
    for name in ("conv_pre.weight", "upsampler.0.weight"):
        scale(vocoder, name, 1e6)
    return Load(
        model="m",
        engine="speech",
        path=str(voices.make_speecht5(folder / "model")),
        threads=1,
        dtype=dtype,
        speech=SpeechOptions(vocoder=str(vocoder)),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["vits", "speecht5"])
def test_half_precision_leaves_what_makes_the_sound_in_float32(
    tmp_path: Path, family: str, dtype: str
) -> None:
    engine = SpeechEngine()
    engine.load(order(family, tmp_path, dtype), lambda _: None)
    job = SpeechJob(id="j", text="hello there", seed=1, folder=str(tmp_path))
    (final,) = finals(run_to_end(engine, job)).values()
    assert isinstance(final, SpeechDone), final
    engine.close()
