"""Measures what limits in Redis add to a request: its time, and the CPU time of the gateway.

    python -m benchmarks.shared_limits [--rounds 20] [--requests 200]

Two servers take turns, one alone and one with ``redis.url``, each asked with two keys: of a tier
with rates and places (one round trip), and of one with quotas and a rate of tokens too (two).
Figures are medians of the rounds. Redis is the one in PATH, on a socket of its own.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks.gateway import MODEL
from benchmarks.http_client import make_target
from benchmarks.load import CHAT, PROMPT, chat_body, closed_loop, run
from benchmarks.machine import describe, load_average
from benchmarks.servers import BitingLip

_MANY = 10**9
_RATES = ("requests_per_minute", "requests_per_hour", "concurrent_requests")
_SETTINGS = (
    f"models.{MODEL}.engine=fake",
    "workers.spare=false",
    *(f"limits.tiers.{tier}.{each}={_MANY}" for tier in ("pro", "enterprise") for each in _RATES),
    f"limits.tiers.enterprise.tokens_per_minute={_MANY}",
    f"limits.tiers.enterprise.daily.tokens={_MANY}",
)
TIERS = {"pro": "rates and places", "enterprise": "and quotas, tokens"}


def start_redis(folder: Path, stack: ExitStack) -> str:
    """Start a Redis that keeps nothing; return its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("there is no redis-server: apt-get install redis-server")
    socket = folder / "redis"
    command = [program, "--port", "0", "--save", "", "--unixsocket", str(socket)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while not socket.exists():
        time.sleep(0.01)
    return f"unix://{socket}"


def make_key(server: BitingLip, tier: str) -> str:
    body = json.dumps({"name": tier, "tier": tier}).encode()
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/api/v1/keys", body, headers)
    with urllib.request.urlopen(request) as answer:
        key: str = json.load(answer)["key"]
    return key


def measure(asked: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, list[float]]:
    """Return medians of milliseconds, by server and tier, of each round; and CPU microseconds."""
    url = start_redis(folder, stack)
    targets, pids = {}, {}
    for name, more in (("alone", ()), ("Redis", (f"redis.url={url}",))):
        place = folder / name
        place.mkdir()
        server = stack.enter_context(BitingLip(place, *_SETTINGS, *more))
        for tier in TIERS:
            body = chat_body(MODEL, PROMPT, 8)
            targets[name, tier] = make_target(server.url + CHAT, [body], make_key(server, tier))
            pids[name, tier] = server.pid
    found: dict[str, list[float]] = {}
    for number in range(asked.rounds + 1):
        for (name, tier), target in targets.items():
            before = _computed(pids[name, tier])
            report = run(closed_loop(target, concurrency=1, requests=asked.requests))
            if report.errors:
                raise SystemExit(f"{name}: {report.errors}")
            if number:  # the first warms up
                cpu = (_computed(pids[name, tier]) - before) / asked.requests / 1e3
                median = statistics.median(each.ended - each.started for each in report.good) * 1e3
                found.setdefault(f"{name} {tier}", []).append(median)
                found.setdefault(f"{name} {tier} cpu", []).append(cpu)
    return found


def _computed(pid: int) -> int:
    """Return the nanoseconds that a process has computed."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200, help="of one round")
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = measure(asked, Path(folder), stack)
    print("| limits of the key | p50 alone | p50 with Redis | more | CPU alone | CPU with Redis |")
    print("|---|---|---|---|---|---|")
    for tier, words in TIERS.items():
        alone, shared = found[f"alone {tier}"], found[f"Redis {tier}"]
        more = statistics.median(b - a for a, b in zip(alone, shared, strict=True))
        cpus = [statistics.median(found[f"{name} {tier} cpu"]) for name in ("alone", "Redis")]
        print(
            f"| {words} | {statistics.median(alone):.2f} ms | {statistics.median(shared):.2f} ms "
            f"| {more:+.2f} ms | {cpus[0]:.0f} us | {cpus[1]:.0f} us |"
        )
    print(f"\n{describe(load)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
