"""Runs an agent: ``python -m workers.agent``, with its settings as a line of JSON on its input.

Ray's actor starts it so on each node. It prints a line of JSON once it listens.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading

import msgspec

from workers.nodes.agent import Agent
from workers.nodes.handshake import LEAST_SECRET, BadSecret, read_secret
from workers.nodes.messages import AgentConfig, Listening

_MOST_CONFIG = 1 << 20  #: bytes


def main() -> int:
    """Serve until a signal or the end of the input says otherwise; return the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        config = msgspec.json.decode(sys.stdin.buffer.readline(_MOST_CONFIG), type=AgentConfig)
        secret = read_secret(config.secret_file) if config.secret_file else config.secret
        if len(secret) < LEAST_SECRET:
            raise BadSecret(f"The secret has fewer than {LEAST_SECRET} characters.")
        agent = Agent(config, secret)
        listener = agent.listen()
    except (msgspec.DecodeError, BadSecret, OSError) as error:
        sys.stderr.write(f"the agent cannot start: {error}\n")
        return 2
    host, port = listener.getsockname()[:2]
    sys.stdout.buffer.write(msgspec.json.encode(Listening(host, port)) + b"\n")
    sys.stdout.flush()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(agent, listener, ends_with_input=config.ends_with_input))
    return 0


async def _serve(agent: Agent, listener: socket.socket, *, ends_with_input: bool) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(agent.serve(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    if ends_with_input:

        def wait_for_end() -> None:
            while os.read(0, 4096):
                pass
            loop.call_soon_threadsafe(serving.cancel)

        threading.Thread(target=wait_for_end, name="input", daemon=True).start()
    await serving


if __name__ == "__main__":
    sys.exit(main())
