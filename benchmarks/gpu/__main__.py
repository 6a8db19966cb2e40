"""Proves and measures the whole product on one card in eight minutes.

    python -m benchmarks.gpu [--minutes 8] [--out DIR] [--only PART]... [--device cuda|cpu]
                             [--shape real|tiny] [--preload]

Each part runs in a process of its own with a limit of its own, in order of value; one that fails,
hangs or runs out of memory is recorded with the end of its output, and the others go on. With each
figure ``results.json`` and ``table.md`` in DIR are written again, so a run that is cut off at any
moment has left what it measured, and its logs. The table is printed last. Weights
are random and made on the spot, so nothing has to be fetched. ``--device cpu --shape tiny``
rehearses every part; with ``--preload`` they share one import of the libraries, in a minute.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import report
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.supervisor import Outcome, end_of_log, not_begun, run_part

_LEAST_SECONDS = 5.0  #: a part that has less left is not begun
_REHEARSAL_PATIENCE = 3.0  #: limits are for a card that is paid for; a CPU may be busy


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run the parts; gives 0 if all passed, else 1."""
    arguments = _parse(argv, parts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    wanted = [part for part in parts if not arguments.only or part.name in arguments.only]
    folder = Path(tempfile.mkdtemp(prefix="bitinglip-gpu-"))
    try:
        outcomes = _run(arguments, wanted, folder, deadline)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(each.state == "passed" for each in outcomes) else 1


def _run(
    arguments: argparse.Namespace, parts: Sequence[Part], folder: Path, deadline: float
) -> list[Outcome]:
    command = f"python -m benchmarks.gpu --device {arguments.device} --shape {arguments.shape}"
    outcomes: list[Outcome] = []
    table = ""
    log, logs = arguments.out / "log.txt", arguments.out / "logs"
    log.write_bytes(b"")
    logs.mkdir(exist_ok=True)
    for number, part in enumerate(parts, 1):
        patience = _REHEARSAL_PATIENCE if arguments.preload else 1.0
        limit = min(patience * part.limit, deadline - time.monotonic())
        print(f"[{number}/{len(parts)}] {part.name}: {part.question}", file=sys.stderr, flush=True)
        if limit < _LEAST_SECONDS:
            outcome = not_begun(part)
        else:
            outcome = run_part(
                part,
                arguments.device,
                arguments.shape,
                folder,
                limit,
                logs,
                told=lambda so_far: report.write(arguments.out, command, [*outcomes, so_far]),
                preload=arguments.preload,
            )
        print(f"    {outcome.state} in {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
        outcomes.append(outcome)
        with log.open("ab") as file:
            file.write(f"==== {part.name}\n".encode() + end_of_log(logs, part.name) + b"\n")
        table = report.write(arguments.out, command, outcomes)
    print(table)
    return outcomes


def _parse(argv: Sequence[str] | None, parts: Sequence[Part]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), help="folder of the results"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[part.name for part in parts],
        metavar="PART",
        help=f"run this part only; may be repeated ({', '.join(part.name for part in parts)})",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["real", "tiny"], default="real")
    parser.add_argument(
        "--preload", action="store_true", help="import the libraries once (on a CPU only)"
    )
    arguments = parser.parse_args(argv)
    if arguments.preload and arguments.device != "cpu":
        parser.error("--preload is for --device cpu: a fork has no CUDA context of its own")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
