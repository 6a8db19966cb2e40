"""A response is shown as one object, or as a stream of events that are numbered."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from bitinglip.errors import BitingLipError
from bitinglip.results.streams import sse
from bitinglip.scheduling.event_log import Event, EventLog, error_of
from bitinglip.wire.openai_view import OpenAIView
from bitinglip.wire.responses.items import (
    Shown,
    function_call,
    message_item,
    output_text,
    reasoning_item,
    summary_text,
)
from bitinglip.wire.responses.output import (
    ended,
    failed,
    is_summarised,
    namespaces_of,
    shown_logprobs,
    thought_item,
)
from workers import protocol

_json = msgspec.json.Encoder()

#: writes a response that has ended to where it is kept; raises DiskFull or DatabaseUnavailable
Keep = Callable[[Shown, EventLog], Awaitable[None]]


class ResponseView(OpenAIView):
    """Shows items one after another; each is done before the next begins."""

    def __init__(
        self,
        event_log: EventLog,
        request_id: str,
        *,
        echo: Mapping[str, Any],
        keep: Keep | None = None,
        after: int = -1,
    ) -> None:
        """``echo`` is the response before its end; events up to number ``after`` are left out."""
        super().__init__(event_log, request_id)
        self._echo = {**echo, "status": "in_progress"}
        self._tail = str(echo["id"]).removeprefix("resp_")
        self._namespaces = namespaces_of(echo)
        self._summarised = is_summarised(echo)
        self._keep = keep
        self._after = after
        self._number = 0
        self._begun = False
        self._items = 0  #: that were added
        self._open: Shown | None = None  #: the last item, until it is done
        self._call = -1  #: the index of the tool call that the open item shows
        self._pieces: list[str] = []  #: of the open item's text
        self._logprobs: list[Shown] = []
        self._response: Shown | None = None  #: once it has ended
        self._error: BitingLipError | None = None

    async def prepare_final(self) -> None:
        """Keep the response before its client learns of its end, and may ask for it.

        One that has failed before its client saw anything of it is not kept.
        """
        self._response = self._ended()
        succeeded = isinstance(self._event_log.final, protocol.TextDone)
        if self._keep is None or not (succeeded or self._event_log.output_seen):
            return
        try:
            await self._keep(self._response, self._event_log)
        except BitingLipError as error:
            self._error = error
            self._response = failed(self._response, error)

    def body(self) -> bytes:
        """Return the response as JSON. Raises the error of keeping it."""
        if self._error is not None:
            raise self._error
        return _json.encode(self._response)

    def render(self, event: Event) -> bytes:
        match event:
            case protocol.TextDelta():
                return self._begin() + self._delta(event)
            case protocol.TextDone():
                return self._begin() + self._end(self._response or self._ended())
            case protocol.Failed():
                response = self._response or failed(self._echo, error_of(event))
                return self._begin() + self._end(response)
            case protocol.Cancelled():
                return self._begin() + self._end(self._response or self._ended())
            case _:
                return b""

    # ---- the stream ------------------------------------------------------------------------------

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        created = self._event("response.created", response=self._echo)
        return created + self._event("response.in_progress", response=self._echo)

    def _delta(self, delta: protocol.TextDelta) -> bytes:
        shown = b""
        if delta.reasoning:
            if self._kind != "reasoning":
                shown += self._add(reasoning_item(self._next_id("rs"), "", "in_progress"))
                shown += self._of_thought("part.added", part=self._thought(""))
            self._pieces.append(delta.reasoning)
            shown += self._of_thought("text.delta", delta=delta.reasoning)
        if delta.text:
            shown += self._said(delta)
        for call in delta.tool_calls:
            if self._kind != "function_call" or call.index != self._call:
                self._call = call.index
                shown += self._add(
                    function_call(
                        self._next_id("fc"),
                        call,
                        "in_progress",
                        arguments="",
                        namespaces=self._namespaces,
                    )
                )
            self._pieces.append(call.arguments)
            shown += self._of_item("response.function_call_arguments.delta", delta=call.arguments)
        return shown

    def _said(self, delta: protocol.TextDelta) -> bytes:
        shown, logprobs = b"", shown_logprobs(delta.logprobs)
        if self._kind != "message":
            shown += self._add(message_item(self._next_id("msg"), [], "in_progress"))
            shown += self._part("added", output_text(""))
        self._pieces.append(delta.text)
        self._logprobs += logprobs
        name = "response.output_text.delta"
        return shown + self._of_part(name, delta=delta.text, logprobs=logprobs)

    def _ended(self) -> Shown:
        return ended(self._echo, self._event_log)

    def _end(self, response: Shown) -> bytes:
        status = response["status"]
        shown = self._close("incomplete" if status != "completed" else "completed")
        if not self._items and status in ("completed", "incomplete"):  # an empty answer
            shown += self._add(message_item(self._next_id("msg"), [], "in_progress"))
            shown += self._part("added", output_text("")) + self._close(status)
        name = status if status in ("completed", "incomplete") else "failed"
        return shown + self._event(f"response.{name}", response=response)

    @property
    def _kind(self) -> str | None:
        return None if self._open is None else self._open["type"]

    def _next_id(self, prefix: str) -> str:
        return f"{prefix}_{self._tail}_{self._items}"

    def _add(self, item: Shown) -> bytes:
        """Finish the open item and begin this one, whose id tells its place."""
        closed = self._close("completed")
        self._open, self._pieces, self._logprobs = item, [], []
        added = self._event("response.output_item.added", output_index=self._items, item=item)
        self._items += 1
        return closed + added

    def _close(self, status: str) -> bytes:
        item, text = self._open, "".join(self._pieces)
        if item is None:
            return b""
        kind = item["type"]
        if kind == "function_call":
            item = {**item, "arguments": text}
            shown = self._of_item("response.function_call_arguments.done", arguments=text)
        elif kind == "reasoning":
            item = thought_item(item["id"], text, self._echo)
            shown = self._of_thought("text.done", text=text)
            shown += self._of_thought("part.done", part=self._thought(text))
        else:
            part = output_text(text, self._logprobs)
            item = {**item, "content": [part]}
            shown = self._of_part(
                "response.output_text.done", text=text, logprobs=self._logprobs
            ) + self._part("done", part)
        self._open = None
        item = {**item, "status": status}
        index = self._items - 1
        return shown + self._event("response.output_item.done", output_index=index, item=item)

    def _thought(self, text: str) -> Shown:
        return summary_text(text) if self._summarised else {"type": "reasoning_text", "text": text}

    def _of_thought(self, what: str, **values: Any) -> bytes:
        """Return an event of the reasoning, or of the summary that stands in its place."""
        if self._summarised:
            name = f"response.reasoning_summary_{what}"
            return self._of_item(name, summary_index=0, **values)
        kind = "content_part" if what.startswith("part") else "reasoning_text"
        return self._of_part(f"response.{kind}.{what.partition('.')[2]}", **values)

    def _part(self, what: str, part: Shown) -> bytes:
        return self._of_part(f"response.content_part.{what}", part=part)

    def _of_part(self, name: str, **values: Any) -> bytes:
        return self._of_item(name, content_index=0, **values)

    def _of_item(self, name: str, **values: Any) -> bytes:
        assert self._open is not None
        index = self._items - 1
        return self._event(name, item_id=self._open["id"], output_index=index, **values)

    def _event(self, name: str, **values: Any) -> bytes:
        number = self._number
        self._number += 1
        if number <= self._after:
            return b""
        return sse(_json.encode({"type": name, "sequence_number": number, **values}), name)


class InputTokensView(OpenAIView):
    """Shows how many tokens a response would be made from."""

    def body(self) -> bytes:
        done = self._event_log.final
        assert isinstance(done, protocol.TextDone)
        return _json.encode({"object": "response.input_tokens", "input_tokens": done.prompt_tokens})
