"""Finds the texts of a job that a client sent, by the field of the request that holds each."""

from collections.abc import Mapping

from bitinglip.work import traits_of
from workers import protocol

_ARGUMENTS = ".function.arguments"  #: how the fields of calls end whose text is JSON


def texts_of(work: protocol.Job) -> dict[str, str]:
    """Return what a client wrote that a model will read; files are not looked into."""
    return traits_of(work).texts()


def with_texts(work: protocol.Job, texts: Mapping[str, str]) -> protocol.Job:
    """Return the job with these texts in place of its own; others stay."""
    return traits_of(work).with_texts(texts)


def has_token_ids(work: protocol.Job) -> bool:
    """Return whether prompts are tokens, whose text only the model's tokenizer knows."""
    return isinstance(work, protocol.TextJob) and any(
        not isinstance(prompt, str) for prompt in work.prompts
    )


def is_json(field: str) -> bool:
    """Return whether the text of a field is JSON, where it says what is meant by escapes."""
    return field.endswith(_ARGUMENTS)
