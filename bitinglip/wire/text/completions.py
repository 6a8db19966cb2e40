"""OpenAI's older surface continues texts: one or several, given as text or as tokens."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.body import AllowedValues, Whole
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.plain import PlainReader
from bitinglip.wire.text.fields import MAX_TOKENS, ApiDefaults, Count, Logprobs, at_most
from bitinglip.wire.text.openai import OpenAITextFields
from workers import protocol
from workers.protocol.bounds import MOST_SEQUENCES

COMPLETION_DEFAULTS = ApiDefaults(max_tokens=16, temperature=1.0, top_p=1.0)
_TOKEN_IDS = 2**31  #: no model has as many


def _prompts(value: Any) -> tuple[protocol.Prompt, ...]:
    """Take a text, a list of tokens, or a list of those."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "has to be a text, a list of texts or token ids")
    if _are_ids(value):
        return (tuple(value),)
    if len(value) > MOST_SEQUENCES:
        raise PydanticCustomError(
            "prompt",
            "has {count} texts, more than {most}",
            {"count": len(value), "most": MOST_SEQUENCES},
        )
    return tuple(_prompt(each) for each in value)


def _prompt(value: Any) -> protocol.Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and _are_ids(value):
        return tuple(value)
    raise PydanticCustomError("prompt", "has to be a text, a list of texts or token ids")


def _are_ids(value: list[Any]) -> bool:
    return all(type(each) is int and 0 <= each < _TOKEN_IDS for each in value)


Prompts = Annotated[
    tuple[protocol.Prompt, ...],
    PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(OpenAITextFields):
    prompt: Prompts
    #: -1 is no limit
    max_tokens: Annotated[
        Annotated[int, Field(ge=-1, le=MAX_TOKENS), Whole] | None, BeforeValidator(at_most)
    ] = None
    logprobs: Logprobs | None = None
    best_of: Count | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None  #: such as BOS, around each text; null is true
    suffix: Annotated[Any, AllowedValues((None, ""))] = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        self.check_stream_options()
        self._check_max_tokens()
        one = isinstance(self.prompt[0], str) and len(self.prompt) == 1
        work = protocol.TextJob(
            id=new_task_id(),
            prompt=str(self.prompt[0]) if one else None,
            prompts=() if one else self.prompt,
            sampling=self.sampling(
                context.model_settings.sampling,
                COMPLETION_DEFAULTS,
                max_tokens=None if self.max_tokens == -1 else self.max_tokens,
                stop=self.stop,
                logprobs=self.logprobs,
                sequences=self._sequences(),
            ),
            n=self.n or 1,
            best_of=self.best_of,
            echo=bool(self.echo),
            special_tokens=self.add_special_tokens is not False,
            clip_max_tokens=True,
            stream=bool(self.stream),
            prefix_scope=context.prefix_scope,
            grammar=self.asked_grammar(),
        )
        return context.job(work)

    def _check_max_tokens(self) -> None:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("'max_tokens' is 0, which needs 'echo': true.", param="max_tokens")

    def _sequences(self) -> int:
        """Count the texts to make. Raises InvalidRequest for what does not go together."""
        n = self.n or 1
        best_of = self.best_of or n
        if best_of < n:
            raise InvalidRequest(f"'best_of' is less than 'n', which is {n}.", param="best_of")
        if best_of > n and self.stream:
            raise InvalidRequest(
                "'best_of' is only known at the end; leave out 'stream'.", param="best_of"
            )
        sequences = best_of * len(self.prompt)
        if sequences > MOST_SEQUENCES:
            raise InvalidRequest(
                f"The request asks for {sequences} texts; at most {MOST_SEQUENCES} are allowed.",
                param="prompt" if best_of == 1 else "best_of" if best_of > n else "n",
                details={"sequences": MOST_SEQUENCES},
            )
        return sequences


PlainReader(CompletionRequest, {"prompt": (str, lambda text: (text,))}).used()
