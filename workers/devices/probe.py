"""Asks a fresh process whether cards compute: what the driver tells this one may be out of date."""

import json
from collections.abc import Sequence

from workers.devices import child

_MODULE = "workers.engines.card_probe"


def probe_cards(ids: Sequence[str], seconds: float = 120.0) -> dict[str, str]:
    """Return what is wrong by card; a card that is not in it computes. Blocks: call it in a thread.

    ``ids`` are those of CUDA_VISIBLE_DEVICES; ``seconds`` bounds each process, importing torch
    included. A process sees one MIG instance at most, so each of those has its own.
    """
    alone = [[card] for card in ids if card.startswith("MIG")]
    together = [card for card in ids if not card.startswith("MIG")]
    failed: dict[str, str] = {}
    for group in (*alone, together):
        if group:
            failed |= _probe(group, seconds)
    return failed


def _probe(ids: Sequence[str], seconds: float) -> dict[str, str]:
    try:
        output, code = child.run(_MODULE, seconds, ",".join(ids))
    except child.NotStarted as why:
        return dict.fromkeys(ids, f"no process could be started ({why})")
    except child.TooLate:
        return dict.fromkeys(ids, f"a new process did not compute on it within {seconds:g} s")
    return read(output, code, ids)


def read(output: bytes, code: int, ids: Sequence[str]) -> dict[str, str]:
    """Read what the process printed before it ended with this exit code."""
    try:
        found = json.loads(output)
    except ValueError:
        return dict.fromkeys(ids, f"a new process that computes on it ended with code {code}")
    if len(found) != len(ids):
        return dict.fromkeys(ids, f"a new process sees {len(found)} of {len(ids)} cards")
    return {card: why for card, why in zip(ids, found, strict=True) if why is not None}
