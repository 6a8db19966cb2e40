"""Both text surfaces let a client say how the prompt ends: where the model's answer begins."""

from collections.abc import Sequence
from typing import Any

from bitinglip.errors import InvalidRequest
from bitinglip.wire.body import Body
from workers import protocol


class PromptEndFields(Body):
    """Declares fields of vLLM's name: an answer is a new turn unless a request says otherwise."""

    continue_final_message: bool | None = None  #: continue the last message, an assistant's
    add_generation_prompt: bool | None = None  #: write the header of the model's turn

    def prompt_end(self, messages: Sequence[protocol.ChatMessage] | None) -> dict[str, Any]:
        """Return the fields of a job. Raises InvalidRequest for what does not go together."""
        if messages is None:
            for name in ("continue_final_message", "add_generation_prompt"):
                if getattr(self, name) is not None:
                    raise InvalidRequest(f"'{name}' needs 'messages'.", param=name)
            return {}
        if self.continue_final_message:
            self._check_continued(messages[-1])
            return {"continue_final": True}
        return {"generation_prompt": False} if self.add_generation_prompt is False else {}

    def _check_continued(self, last: protocol.ChatMessage) -> None:
        if self.add_generation_prompt:
            raise InvalidRequest(
                "An answer continues the last message or begins a turn: "
                "'continue_final_message' and 'add_generation_prompt' exclude each other.",
                param="add_generation_prompt",
            )
        if last.role != "assistant":
            raise InvalidRequest(
                f"The last message is of the role '{last.role}'; only an assistant's is continued.",
                param="continue_final_message",
            )
        if last.tool_calls:
            raise InvalidRequest(
                "The last message calls tools; it is complete and cannot be continued.",
                param="continue_final_message",
            )
