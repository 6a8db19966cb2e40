"""Writes the results as JSON and as a Markdown table, again after each part."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.recorder import Figure
from benchmarks.gpu.supervisor import Outcome

_ERROR_LINES = 12


def write(out: Path, command: str, outcomes: Sequence[Outcome]) -> str:
    """Write ``results.json`` and ``table.md`` into ``out``; gives the table."""
    results: dict[str, Any] = {"command": command, "parts": [asdict(each) for each in outcomes]}
    _replace(out / "results.json", json.dumps(results, indent=1))
    table = _table(command, outcomes)
    _replace(out / "table.md", table)
    return table


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: the check may be cut off at any moment."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    os.replace(draft, path)


def _table(command: str, outcomes: Sequence[Outcome]) -> str:
    lines = ["```", command, "```", "", "| part | | seconds |", "|---|---|---|"]
    lines += [f"| {each.part} | {each.state} | {each.seconds:.0f} |" for each in outcomes]
    for outcome in outcomes:
        lines += ["", f"### {outcome.part}", "", outcome.question]
        if outcome.figures:
            lines += [
                "",
                "| figure | value | of the ceiling | expected | |",
                "|---|---|---|---|---|",
            ]
            lines += [_row(figure) for figure in outcome.figures]
        if outcome.error:
            lines += ["", f"It {_ending(outcome.state)}:", "", "```"]
            lines += [*outcome.error.splitlines()[-_ERROR_LINES:], "```"]
    return "\n".join(lines) + "\n"


def _ending(state: str) -> str:
    return {"timed out": "was ended at its limit", "not begun": "was not begun"}.get(state, state)


def _row(figure: Figure) -> str:
    value = figure.value if isinstance(figure.value, str) else _number(figure.value)
    share = "" if figure.share is None else f"{100 * figure.share:.0f} % of {figure.ceiling}"
    cells = (figure.name, f"{value} {figure.unit}".strip(), share, figure.expected, figure.note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    """Write three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}"
