"""Simulates the server's scheduling over made-up devices, models and clients, faster than real
time.

    python -m benchmarks.simulator --trace mixed --devices 8x80GB --models 50 --clients 1000

``--policy both`` runs the same trace through plain LRU as well. Times are simulated: loads take
what the settings say, answers as long as a simple model of a batch makes them.
"""

import argparse
import json
import logging
import sys

import structlog

from benchmarks.simulator.report import facts, table
from benchmarks.simulator.run import POLICIES, simulate
from benchmarks.simulator.scenario import settings_for, sizes
from benchmarks.simulator.traces import TRACES, Mix, make
from bitinglip.settings_loader import SettingsError

_REQUESTS_PER_CLIENT = 1 / 30  #: a second


def main(words: list[str] | None = None) -> int:
    asked = _arguments(words)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        settings = settings_for(sizes(asked.devices), asked.models, sizes(asked.sizes), asked.set)
        mix = Mix(
            models=list(settings.models),
            clients=asked.clients,
            seconds=asked.minutes * 60,
            rate=asked.rate or asked.clients * _REQUESTS_PER_CLIENT,
            seed=asked.seed,
        )
        trace = make(asked.trace, mix)
    except (ValueError, OSError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    names = list(POLICIES) if asked.policy == "both" else [asked.policy]
    runs = [simulate(settings, trace, name) for name in names]
    if asked.json:
        print(json.dumps([facts(run) for run in runs], indent=2))
    else:
        print(table(runs))
    return 1 if any(run.over_commits or run.left for run in runs) else 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator", description=(__doc__ or "").split("\n", 1)[0]
    )
    known = ", ".join(TRACES)
    parser.add_argument("--trace", default="mixed", help=f"{known}, or a file of JSON lines")
    parser.add_argument("--devices", default="8x80GB", help="such as 24GB or 4x24GB,80GB")
    parser.add_argument("--models", type=int, default=50, help="how many")
    parser.add_argument("--sizes", default="6GB,14GB,28GB,45GB", help="the models', by turns")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, help="requests a second (a thirtieth per client)")
    parser.add_argument("--minutes", type=float, default=10, help="in which requests arrive")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", choices=[*POLICIES, "both"], default="ours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
