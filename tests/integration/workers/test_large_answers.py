"""Answers that end together and are larger, all in all, than a frame may be."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.models.text import EOS, VOCAB, make_tiny_model
from tests.support.pool_harness import Recorder, fake, with_pool
from tests.support.scheduling_rig import ECHO, Rig, job, with_rig
from tests.support.wait import until
from workers.framing import MAX_FRAME_BYTES
from workers.pool import WorkerPool
from workers.protocol import Event, Failed, Load, Sampling, TextDone, TextJob

_ROWS = 40
_TOKENS = 24
_LETTERS = 1000  #: of each token: in few steps as much as usual ones make in thousands


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a tiny Llama whose tokens are long."""
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("wordy"))
    words = {f"{number:03}".ljust(_LETTERS, "x"): number for number in range(2, VOCAB)}
    backend = Tokenizer(models.WordLevel({"?": 0, EOS: 1, **words}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(folder)
    return folder


def test_logprobs_of_many_answers_that_end_together_lose_no_worker(wordy: Path) -> None:
    spec = Load(
        model="wordy",
        engine="text",
        path=str(wordy),
        dtype="float32",
        kv_cache_bytes=1 << 25,
        threads=1,
        max_batch=_ROWS,
    )
    sampling = Sampling(max_tokens=_TOKENS, ignore_eos=True, logprobs=20)

    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("wordy/0", spec)
        for number in range(_ROWS):
            worker.send(TextJob(id=f"j{number}", prompt="a b", sampling=sampling, stream=False))
        await seen.until(lambda: seen.lost or len(finals(seen.events)) == _ROWS)
        assert seen.lost == []
        done = [each for each in finals(seen.events) if isinstance(each, TextDone)]
        assert len(done) == _ROWS
        told = sum(
            len(other[0]) for each in done for one in each.choices[0].logprobs for other in one.top
        )
        assert told > MAX_FRAME_BYTES

    with_pool(test, load_timeout=100, seconds=60)


def finals(events: Sequence[Event]) -> list[TextDone | Failed]:
    return [each for each in events if isinstance(each, TextDone | Failed)]


def test_answer_that_is_too_large_fails_its_job_only() -> None:
    """The whole of one answer is over the limit; the other's is not."""

    async def test(pool: WorkerPool, seen: Recorder) -> None:
        worker = await pool.start("echo/0", fake())
        for name, tokens in (("large", 20), ("small", 3)):
            sampling = Sampling(max_tokens=tokens)
            worker.send(TextJob(id=name, prompt="x" * 1_000_000, sampling=sampling, stream=False))
        await seen.until(lambda: seen.lost or len(finals(seen.events)) == 2)
        assert seen.lost == []
        ends = {each.id: each for each in finals(seen.events)}
        assert isinstance(ends["large"], Failed)
        assert ends["large"].code == "INVALID_REQUEST"
        assert ends["large"].completion_tokens == 20, "what was computed is charged"
        assert isinstance(ends["small"], TextDone)
        worker.send(TextJob(id="next", prompt="a", sampling=Sampling(max_tokens=1)))
        await seen.until(lambda: len(finals(seen.events)) == 3)

    with_pool(test)


def test_answers_that_waited_for_the_load_and_end_together_all_arrive(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        jobs = [job("x" * 9_000_000, 1), job("y" * 9_000_000, 1)]
        with rig.dispatcher.open(jobs[0]) as first, rig.dispatcher.open(jobs[1]) as second:
            await until(lambda: first.final is not None and second.final is not None, 30)
            assert isinstance(first.final, TextDone)
            assert isinstance(second.final, TextDone)
        assert rig.manager.models[ECHO].restarts == 0

    with_rig(tmp_path, test)
