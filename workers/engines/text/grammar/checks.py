"""Keeps finished texts back until they have been checked against their schemas, on a thread."""

from concurrent.futures import Future, ThreadPoolExecutor

from workers.engines.text.grammar.validation import first_fault
from workers.protocol import Event, Failed, TextDone, TextJob


class Checks:
    """Holds the final events of texts that are being checked."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[TextDone, Future[str | None]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checks")

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, job: TextJob, events: list[Event]) -> list[Event]:
        """Take a final event that is to be checked; return the events that may be sent now.

        A text that ends at a stop string or token need not be whole, nor one of full length; and
        an echoed prompt is of no form.
        """
        final = events[-1] if events else None
        sampling = job.sampling
        if job.grammar is None or job.echo or not isinstance(final, TextDone):
            return events
        if sampling.stop_token_ids:
            return events
        ended = [each for each in final.choices if each.finish_reason == "stop"]
        texts = [each.text for each in ended if each.stop is None]
        self._held[job.id] = (final, self._thread.submit(first_fault, job.grammar, texts))
        return events[:-1]

    def take(self) -> list[Event]:
        """Return the final events of the texts that have been checked."""
        checked = [(name, *each) for name, each in self._held.items() if each[1].done()]
        for name, _, _ in checked:
            del self._held[name]
        return [_judged(final, result.result()) for _, final, result in checked]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._held.clear()


def _judged(final: TextDone, found: str | None) -> Event:
    if found is None:
        return final
    return Failed(
        id=final.id,
        code="INVALID_REQUEST",  # its form has alternatives that overlap, or none
        message=f"The text that the model made is not of the form that was asked for: {found}",
        prompt_tokens=final.prompt_tokens,
        completion_tokens=final.completion_tokens,
    )
