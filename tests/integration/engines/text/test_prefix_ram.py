"""Prefixes that have left the text engine's cache: they come back from RAM, and nothing changes."""

from pathlib import Path

import msgspec
import pytest
import torch

from tests.support.models.sequential_text import make_sequential_model
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, job, load, run
from workers.engines.base import Refused
from workers.protocol import TextJob, TextOptions

_BLOCK_BYTES = 3 * 64 * 4 * BLOCK_SIZE
CACHE = 30 * _BLOCK_BYTES  #: of 29 blocks
RAM = TextOptions(prefix_ram_bytes=60 * (_BLOCK_BYTES + 24) + (3 << 12))
PROMPTS = [f"{n}. A beginning of its own, which takes about half of the cache. " for n in range(4)]


def within(scope: str, name: str, prompt: str, max_tokens: int = 8) -> TextJob:
    return msgspec.structs.replace(job(name, prompt, max_tokens=max_tokens), prefix_scope=scope)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


def test_prefix_that_left_the_cache_comes_back_from_ram(llama: Path) -> None:
    plain, _ = load(llama, kv_cache_bytes=CACHE)
    engine, _ = load(llama, kv_cache_bytes=CACHE, text=RAM)
    for prompt in PROMPTS * 2:  # each takes the blocks of the one before
        expected = run(plain, within("a", "x", prompt))["x"]
        assert run(engine, within("a", "x", prompt))["x"].text == expected.text
    for prompt in PROMPTS[:3]:
        gone = run(plain, within("a", "x", prompt + "And more."))["x"]
        found = run(engine, within("a", "x", prompt + "And more."))["x"]
        assert found.text == gone.text
        assert gone.cached_tokens < BLOCK_SIZE * 3
        assert found.cached_tokens > found.prompt_tokens // 2
    strange = run(engine, within("b", "x", PROMPTS[0]))["x"]
    assert strange.cached_tokens == 0
    plain.close()
    engine.close()


def test_prefixes_in_ram_beside_running_rows_change_no_text(llama: Path) -> None:
    """Rows that are preempted, and blocks that leave while others come back."""
    plain, _ = load(llama, step_tokens=16)
    small = TextOptions(prefix_ram_bytes=12 * (_BLOCK_BYTES + 24) + (3 << 12))
    engine, _ = load(llama, step_tokens=16, kv_cache_bytes=CACHE, text=small)
    jobs = [within("a", str(n), PROMPTS[n % 4][: 30 + n], 12) for n in range(12)]
    expected = {name: end.text for name, end in run(plain, *jobs).items()}
    for _ in range(2):
        found = run(engine, *jobs)
        assert {name: end.text for name, end in found.items()} == expected
    assert sum(end.cached_tokens for end in found.values()) > 0
    plain.close()
    engine.close()


def test_prefix_ram_is_refused_where_it_can_keep_nothing(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"text\.prefix_ram_bytes is 100; a block of this model"):
        load(llama, text=TextOptions(prefix_ram_bytes=100))
    folder = make_sequential_model("lfm2", tmp_path / "lfm2")
    with pytest.raises(Refused, match=r"text\.prefix_ram_bytes is set, which is not for this"):
        load(folder, text=RAM)


def test_prefixes_that_memory_does_not_suffice_for_are_lost(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card runs out of memory while blocks are copied out or back: they are computed again."""
    engine, _ = load(llama, kv_cache_bytes=CACHE, text=RAM)
    cache = engine._runner.cache
    assert cache is not None
    expected = [run(engine, within("a", "x", prompt))["x"].text for prompt in PROMPTS]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("made up")

    for name in ("copy_in", "copy_out"):
        with monkeypatch.context() as patched:
            patched.setattr(cache, name, full)
            found = [run(engine, within("a", "x", prompt))["x"] for prompt in PROMPTS]
        assert [end.text for end in found] == expected
        if name == "copy_in":
            assert not any(end.cached_tokens for end in found)
    engine.close()
