"""Measures what traces of requests cost: the CPU time of the server's process, off and on.

    python -m benchmarks.tracing [--rounds 40] [--requests 400] [--ratio 0.01]

Three servers with equal settings but for ``telemetry.tracing`` take turns, so that whatever else
the machine does meets all of them; figures are medians of the rounds, and of the ratios of rounds
that follow each other. Spans go to a collector in this process.
"""

import argparse
import statistics
import sys
import tempfile
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.gateway import MODEL
from benchmarks.http_client import Target, make_target
from benchmarks.load import CHAT, PROMPT, chat_body, closed_loop, run
from benchmarks.machine import describe, load_average
from benchmarks.servers import BitingLip, Server

#: the model answers at once, and the admin's key has no limits
_QUIET = (f"models.{MODEL}.engine=fake", "workers.spare=false")


class Collector(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write no line for each batch."""


def measure(asked: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, list[float]]:
    """Return the CPU time of a request in microseconds, by server and round."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    stack.callback(collector.server_close)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    stack.callback(collector.shutdown)
    endpoint = f"telemetry.tracing.endpoint=http://127.0.0.1:{collector.server_port}"
    some = f"telemetry.tracing.sample_ratio={asked.ratio}"
    ways: dict[str, list[str]] = {"off": [], "some": [endpoint, some], "all": [endpoint]}
    servers: dict[str, Server] = {}
    for name, settings in ways.items():
        place = folder / name
        place.mkdir()
        servers[name] = stack.enter_context(BitingLip(place, *_QUIET, *settings))
    for server in servers.values():
        run(closed_loop(_target(server), concurrency=8, requests=asked.requests))
        server.settle()
    costs: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(asked.rounds):
        for name, server in servers.items():
            costs[name].append(_cost(server, asked.requests))
    return costs


def _cost(server: Server, requests: int) -> float:
    before = _computed(server.pid)
    report = run(closed_loop(_target(server), concurrency=8, requests=requests))
    if report.errors:
        raise SystemExit(f"{server.name}: {report.errors}")
    return (_computed(server.pid) - before) / requests / 1e3


def _computed(pid: int) -> int:
    """Return the nanoseconds that a process has computed; the usual clock counts in 10 ms."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks)


def _target(server: Server) -> Target:
    return make_target(server.url + CHAT, [chat_body(MODEL, PROMPT, 8)], server.key)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=400, help="of one round")
    parser.add_argument("--ratio", type=float, default=0.01, help="share that is traced")
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        costs = measure(asked, Path(folder), stack)
    print("| traced | CPU time of a request | over off |\n|---|---|---|")
    for name, share in (("off", "none"), ("some", f"{asked.ratio:.0%}"), ("all", "all")):
        pairs = zip(costs[name], costs["off"], strict=True)
        ratio = statistics.median(ours / off for ours, off in pairs)
        print(f"| {share} | {statistics.median(costs[name]):.0f} us | {ratio - 1:+.1%} |")
    print(f"\n{describe(load)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
