"""Random arrivals with all that the engine has: nobody starves, no text changes, nothing leaks.

Jobs of all priorities and lengths come while others run, alone and with choices, of three LoRAs for
two slots and of their base, over common beginnings, in a cache that is too small for them, beside
RAM for what leaves it; some are cancelled, before they began and later.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.engine_runs import finals, run_to_end, submit
from tests.support.models.adapters import make_text_lora
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, done, job, load, note_preempted
from workers.engines.text.engine import TextEngine
from workers.protocol import Cancelled, Event, Final, TextDone, TextJob, TextLora, TextOptions

_BLOCK_BYTES = 3 * 64 * 4 * BLOCK_SIZE  #: of the tiny llama, in float32
SMALL = 34 * _BLOCK_BYTES
LORAS = TextOptions(max_loras=2, max_lora_rank=16)
_RAM = 60 * (_BLOCK_BYTES + 24) + (3 << 12)  #: of blocks, and what is kept of each
WAYS = {
    "overlap": TextOptions(overlap="on", max_loras=2, max_lora_rank=16, prefix_ram_bytes=_RAM),
    "speculation": TextOptions(
        speculation="lookup", max_loras=2, max_lora_rank=16, prefix_ram_bytes=_RAM
    ),
}
TWO_WORDS = {270: 100.0, 300: 100.0}  #: texts of these repeat themselves, so drafts are right
JOBS = 60
MOST_OVERTAKING = 12  #: of a job, by later ones that end before it: it is 7, and 26 if it starves

#: A prompt, the tokens of an answer, choices, and a LoRA; the base is the last one.
KINDS = [
    (prompt, tokens, n, lora)
    for lora in range(4)
    for prompt, tokens, n in (
        ("one two", 5, 1),
        ("A beginning that many have in common. One", 20, 2),
        ("A beginning that many have in common. Two, and more.", 12, 1),
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("play") / "base")


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TextLora | None]:
    root = tmp_path_factory.mktemp("loras")
    ranks = (4, 16, 8)
    paths = [make_text_lora(base, root / f"{rank}", seed=rank, r=rank) for rank in ranks]
    return [*(TextLora(path=str(path)) for path in paths), None]


def of_kind(name: str, kind: int, loras: list[TextLora | None], **fields: Any) -> TextJob:
    prompt, tokens, n, lora = KINDS[kind]
    plain = job(name, prompt, max_tokens=tokens, logit_bias=TWO_WORDS, stream=False)
    return msgspec.structs.replace(plain, n=n, lora=loras[lora], **fields)


@pytest.fixture(scope="module")
def alone(base: Path, loras: list[TextLora | None]) -> list[list[str]]:
    """Provide the texts of each kind, computed alone in a large cache."""
    engine, _ = load(base, text=LORAS)
    ends = [done(run_to_end(engine, of_kind("x", kind, loras)))["x"] for kind in range(len(KINDS))]
    engine.close()
    return [[each.text for each in end.choices] for end in ends]


class Play:
    """Sends jobs to an engine at random, and notes when each came and how it ended."""

    def __init__(self, engine: TextEngine, loras: list[TextLora | None], seed: int) -> None:
        self._engine = engine
        self._loras = loras
        self._chance = random.Random(seed)
        self.kinds: dict[str, int] = {}
        self.events: list[Event] = []
        self.waited_for_slots = False
        self.overtaken: Counter[str] = Counter()  #: of each job, how many later ones ended first
        self._here: list[str] = []  #: that have not ended

    def run(self) -> None:
        while len(self.kinds) < JOBS or self._engine.in_flight:
            if len(self.kinds) < JOBS and self._chance.random() < 0.3:
                self._send()
            if self._here and self._chance.random() < 0.04:
                self._engine.cancel(self._chance.choice(self._here))
            self._step()

    def _send(self) -> None:
        name = f"{len(self.kinds)}"
        self.kinds[name] = self._chance.randrange(len(KINDS))
        scope = self._chance.choice(["key", "key", "other", None])
        priority = self._chance.randint(-2, 2)
        self._here.append(name)
        one = of_kind(name, self.kinds[name], self._loras, prefix_scope=scope, priority=priority)
        submit(self._engine, one)

    def _step(self) -> None:
        new = self._engine.step()
        self.events += new
        for event in new:
            if isinstance(event, Final):
                self._here.remove(event.id)  # each ends once
                if isinstance(event, TextDone):
                    self.overtaken.update(e for e in self._here if int(e) < int(event.id))
        books = self._engine._allocator.books()
        assert books["free"] + books["used"] == books["total"]
        held = [b for each in self._engine._generations for b in set(each.blocks)]
        assert books["used"] >= len(set(held)), "no block is both free and held"
        self.waited_for_slots |= len(self._engine._loras) > 0
        slots = self._engine._runner.loras
        assert slots is not None
        assert len(slots.held) <= LORAS.max_loras
        for sequence in self._engine._generations:  # none has lost its LoRA
            lora = self._engine._requests[sequence.id].job.lora
            assert sequence.lora == (None if lora is None else slots._slots[lora.path])


@pytest.mark.parametrize("way", WAYS)
def test_random_play_starves_nobody_changes_no_text_and_leaves_nothing(
    base: Path, loras: list[TextLora | None], alone: list[list[str]], way: str
) -> None:
    engine, _ = load(base, step_tokens=16, kv_cache_bytes=SMALL, max_batch=6, text=WAYS[way])
    preempted, brought = note_preempted(engine), 0
    bring_back = engine._allocator.bring_back

    def noting(keys: Any) -> list[int]:
        nonlocal brought
        found = bring_back(keys)
        brought += len(found)
        return found

    engine._allocator.bring_back = noting  # type: ignore[method-assign]  # and counts, no more
    play = Play(engine, loras, seed=7)
    play.run()
    ends = finals(play.events)
    assert ends.keys() == play.kinds.keys()
    answered = {name: end for name, end in ends.items() if isinstance(end, TextDone)}
    cancelled = [end for end in ends.values() if isinstance(end, Cancelled)]
    assert len(answered) + len(cancelled) == JOBS
    for name, end in answered.items():
        assert [each.text for each in end.choices] == alone[play.kinds[name]], name
    assert max(play.overtaken.values()) <= MOST_OVERTAKING, "one waits for ever while others come"
    # All of it has happened, or this has shown nothing.
    assert len(answered) > JOBS // 2
    assert any(each.completion_tokens for each in cancelled)
    assert preempted
    assert play.waited_for_slots
    assert brought
    assert any(end.cached_tokens for end in answered.values())
    assert any(end.accepted_tokens for end in answered.values()) == (way == "speculation")
    # And nothing is left.
    assert not any(engine.books().values())
    assert engine._allocator.books()["free"] == engine._allocator.total
    assert engine._runner.loras is not None
    assert engine._runner.loras.used == 0
    assert not engine._generations
    assert not len(engine._requests)
    engine.close()
