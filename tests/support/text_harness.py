"""Runs the text engine with tiny models until every job has ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.engine_runs import finals, run_to_end
from workers.engines.text.engine import TextEngine
from workers.engines.text.plan import Plan
from workers.engines.text.rounding import distances
from workers.engines.text.self_check import Computed
from workers.protocol import Event, Load, Ready, Sampling, TextDone, TextJob

BLOCK_SIZE = 4


def load(
    path: Path, *, step_tokens: int | None = None, kv_cache_bytes: int = 1 << 20, **spec: Any
) -> tuple[TextEngine, Ready]:
    engine = TextEngine(step_tokens=step_tokens, block_size=BLOCK_SIZE)
    settings = {"dtype": "float32", "kv_cache_bytes": kv_cache_bytes, "threads": 1, **spec}
    order = Load(model="tiny", engine="text", path=str(path), **settings)
    return engine, engine.load(order, lambda _fraction: None)


def job(name: str, prompt: str = "one two", *, stream: bool = True, **sampling: Any) -> TextJob:
    settings = Sampling(**{"max_tokens": 12, "ignore_eos": True, **sampling})
    return TextJob(id=name, prompt=prompt, sampling=settings, stream=stream)


def run(engine: TextEngine, *jobs: TextJob) -> dict[str, TextDone]:
    """Run all jobs to their ends, at once; afterwards nothing is held."""
    return done(run_to_end(engine, *jobs))


def done(events: list[Event]) -> dict[str, TextDone]:
    """Return the answers of the jobs that succeeded."""
    return {name: final for name, final in finals(events).items() if isinstance(final, TextDone)}


def note_preempted(engine: TextEngine) -> list[str]:
    """Return a list of the jobs whose rows lose their blocks from now on, as they do."""
    noted: list[str] = []
    usual = engine._scheduler.schedule

    def noting(**named: Any) -> Plan:
        plan = usual(**named)
        noted.extend(each.id for each in plan.preempted)
        return plan

    engine._scheduler.schedule = noting  # type: ignore[method-assign]  # of this engine alone
    return noted


def generated(library: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return the tokens that the library's generate() says after a prompt, greedy."""
    ids = library.generate(
        torch.tensor([prompt]),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
    )
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def farthest(found: Computed, expected: Sequence[torch.Tensor]) -> float:
    """Return how far the logits of prompts are from those expected, as root mean squares.

    expected: of each prompt, [tokens, vocab]
    """
    rows = found.rows.items()
    return max(distances(got, expected[row][at]).item() for (row, at), got in rows)


@torch.inference_mode()
def distance_from_library(
    path: Path, dtype: torch.dtype, device: str, prompt: list[int], end: TextDone
) -> tuple[float, float]:
    """Compare a greedy answer with logprobs with what the library computes for its tokens.

    -> by how much another token was likelier at most, and how far off a logprob is at most
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    said = [one.id for one in end.choices[0].logprobs]
    ids = torch.tensor([[*prompt, *said]], device=device)
    logits = model.to(device).eval()(input_ids=ids).logits[0].float()
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)  # [said, vocab]
    chosen = expected.gather(1, ids[0, len(prompt) :, None])[:, 0]
    reported = torch.tensor([one.logprob for one in end.choices[0].logprobs], device=device)
    likelier = (expected.amax(-1) - chosen).max().item()
    return likelier, (reported - chosen).abs().max().item()
