"""Turns the events of one streamed answer into text, a spinner and figures."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cli.client import Client, refusal
from cli.errors import Failure
from cli.show.output import Waiting, waiting

ROUTE = "/api/v1/inference/text-generation"


@dataclass(frozen=True)
class Answer:
    """Holds the API's InferenceResponse of a completed answer, and when the first text came."""

    response: dict[str, Any]
    first_text_after: float

    def figures(self) -> str:
        """Format tokens, their rate and the time to the first token as one line."""
        tokens = self.response["usage"]["completion_tokens"]
        seconds = self.response["processing_time"]
        parts = [f"{tokens} {'token' if tokens == 1 else 'tokens'}"]
        if seconds > 0:
            parts.append(f"{tokens / seconds:.1f} tokens/s")
        parts.append(f"first after {self.first_text_after:.2f} s")
        result = self.response["result"]
        choices = result.get("choices", [result])
        if any(each["finish_reason"] == "length" for each in choices):
            parts.append("cut off at the limit; --max-tokens raises it")
        return ", ".join(parts)


def stream_answer(client: Client, body: dict[str, Any], write: Callable[[str], None]) -> Answer:
    """Send the request, pass each piece of text to ``write``, and return the whole answer.

    Leaving by an exception, Ctrl-C too, cancels the answer on the server.
    """
    asked = time.monotonic()
    first: float | None = None
    with waiting() as spinner, client.stream(ROUTE, {**body, "stream": True}) as events:
        for name, data in events:
            if name == "token" and data.get("text") and not data.get("choice"):
                first = first or time.monotonic()
                spinner.stop()
                write(data["text"])
            elif name == "completed":
                return Answer(data, (first or time.monotonic()) - asked)
            elif name == "failed":
                raise refusal(data.get("error") or {})
            elif name == "cancelled":
                raise Failure("the answer was cancelled on the server")
            else:
                _tell(spinner, body["model"], name, data)
    raise Failure("the connection broke off before the answer was complete")


def _tell(spinner: Waiting, model: str, name: str, data: dict[str, Any]) -> None:
    """Show in the spinner what happens before the first text."""
    match name:
        case "queued" if data.get("position", 0) > 1:
            spinner.say(f"waiting for {model}, number {data['position']} in line")
        case "queued":
            spinner.say(f"waiting for {model}")
        case "loading":
            spinner.say(f"loading {model}, {data.get('progress', 0):.0%}")
        case "started":
            spinner.say(f"{model} is reading")


def given_options(**options: Any) -> dict[str, Any]:
    """Return the options that were given; the server has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}
