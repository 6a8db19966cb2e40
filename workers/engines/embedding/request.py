"""Holds a request for embeddings, its texts as tokens, and the vectors that are there so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workers.context_length import context_length_error
from workers.engines.base import Refused
from workers.engines.embedding.loading import LoadedEmbedder
from workers.protocol import (
    Cancelled,
    EmbeddingDone,
    EmbeddingJob,
    Event,
    Failed,
    Progress,
    Started,
)
from workers.protocol.bounds import MOST_VECTOR_BYTES

_FLOAT_BYTES = 4


@dataclass(slots=True, frozen=True, eq=False)
class TokenizedText:
    """Holds one text of a request; ``skip`` tokens at its beginning are not pooled."""

    request: "Request"
    index: int
    tokens: Sequence[int]
    types: Sequence[int]  #: of each token, 0 for the query and 1 for the text, or empty
    skip: int


@dataclass(slots=True, eq=False)
class Request:
    """Gathers the vectors of one job; its texts may run in different batches."""

    job: EmbeddingJob
    dimensions: int
    normalize: bool
    prompt_tokens: int = 0
    texts: list[TokenizedText] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)  #: texts that were longer than what is read
    vectors: dict[int, Tensor] = field(default_factory=dict)
    started: bool = False

    def start(self) -> list[Event]:
        """Return the event of the first batch; nothing afterwards."""
        if self.started:
            return []
        self.started = True
        return [Started(id=self.job.id, prompt_tokens=self.prompt_tokens)]

    def progress(self) -> list[Event]:
        """Return the event of a batch that was not the last one, if the job is streamed."""
        if not self.job.stream:
            return []
        return [Progress(id=self.job.id, step=len(self.vectors), steps=len(self.texts))]

    def add(self, index: int, vector: Tensor) -> bool:
        """Keep a vector; returns whether it was the last one."""
        self.vectors[index] = vector
        return len(self.vectors) == len(self.texts)

    def done(self) -> EmbeddingDone:
        """Return the final event: all vectors in the order of the texts, cut to ``dimensions``."""
        stacked = torch.stack([self.vectors[index] for index in range(len(self.texts))])
        whole = stacked.shape[1]
        stacked = stacked[:, : self.dimensions]
        if self.normalize and self.dimensions < whole:
            stacked = torch.nn.functional.normalize(stacked, dim=-1)
        return EmbeddingDone(
            id=self.job.id,
            vectors=stacked.contiguous().numpy().astype("<f4").tobytes(),
            dimensions=self.dimensions,
            prompt_tokens=self.prompt_tokens,
            cut=tuple(self.cut),
        )

    def failed(self, code: Any, message: str) -> Failed:
        return Failed(id=self.job.id, code=code, message=message)

    def cancelled(self) -> Cancelled:
        return Cancelled(id=self.job.id, prompt_tokens=self.prompt_tokens)


class Preprocessor:
    """Tokenises jobs, off the loop's thread."""

    def __init__(self, loaded: LoadedEmbedder) -> None:
        self._loaded = loaded
        self._prompt_lengths: dict[str, int] = {}

    def prepare(self, job: EmbeddingJob) -> Request:
        """Tokenise the texts of a job. Raises Refused."""
        self._check_capability(job)
        layout, dimensions = self._loaded.layout, self._dimensions(job)
        prompt = layout.prompt(job.prompt_name)
        skip = 0 if layout.include_prompt or not prompt else self._prompt_length(prompt)
        request = Request(job, dimensions, layout.normalize)
        encoded = self._encode(job, prompt)
        kinds = encoded.get("token_type_ids") or [()] * len(job.texts)
        for index, (tokens, types) in enumerate(zip(encoded["input_ids"], kinds, strict=True)):
            self._check_length(job, index, len(tokens))
            text = TokenizedText(request, index, tokens, types, min(skip, len(tokens) - 1))
            request.texts.append(text)
            request.prompt_tokens += len(tokens)
            if encoded.encodings[index].overflowing:
                request.cut.append(index)
        return request

    def _encode(self, job: EmbeddingJob, prompt: str) -> Any:
        """Tokenise the texts, or the query with each of them: the longer of a pair is cut first."""
        texts = [(prompt if job.query is None else "") + text for text in job.texts]
        queries = [[prompt + job.query] * len(texts)] if job.query is not None else []
        return self._loaded.tokenizer(
            *queries,
            texts,
            truncation=job.truncate,
            max_length=self._loaded.max_tokens if job.truncate else None,
            return_attention_mask=False,
            return_token_type_ids=self._loaded.token_types,
            verbose=False,
        )

    def _check_capability(self, job: EmbeddingJob) -> None:
        """Raise Refused for a query to an embedding model, or a text alone to a cross-encoder."""
        if self._loaded.layout.score is None and job.query is not None:
            raise Refused("INVALID_REQUEST", "This model makes vectors, not scores.", param="model")
        if self._loaded.layout.score is not None and job.query is None:
            raise Refused("INVALID_REQUEST", "This model makes scores, not vectors.", param="model")

    def _dimensions(self, job: EmbeddingJob) -> int:
        """Return the length of the job's vectors. Raises Refused."""
        most = self._loaded.dimensions
        asked = most if job.dimensions is None else job.dimensions
        if asked > most:
            raise Refused(
                "INVALID_REQUEST",
                f"The vectors of this model have {most} dimensions; {asked} were asked for.",
                param="dimensions",
            )
        at_once = MOST_VECTOR_BYTES // (_FLOAT_BYTES * asked)
        if len(job.texts) > at_once:
            raise Refused(
                "INVALID_REQUEST",
                f"A request may hold {at_once} vectors of {asked} dimensions; send fewer.",
                param="input",
            )
        return asked

    def _check_length(self, job: EmbeddingJob, index: int, tokens: int) -> None:
        """Raise Refused for a text without tokens, or with more than the model reads."""
        most = self._loaded.max_tokens
        field_name = f"input[{index}]" if job.query is None else f"documents[{index}]"
        if tokens == 0:
            raise Refused("INVALID_REQUEST", "The text is empty.", param=field_name)
        if tokens > most:
            what = "" if job.query is None else "The query is read with each document. "
            message, details = context_length_error(most, tokens, max_tokens=None)
            raise Refused(
                "CONTEXT_LENGTH_EXCEEDED",
                f"{message} {what}Send shorter pieces, or 'truncate': true to read the beginning "
                "only.",
                param=field_name,
                details=details,
            )

    def _prompt_length(self, prompt: str) -> int:
        """Count the tokens of a prompt, without a special one at its end."""
        if prompt not in self._prompt_lengths:
            tokenizer = self._loaded.tokenizer
            tokens = tokenizer(prompt)["input_ids"]
            ends = bool(tokens) and tokens[-1] in tokenizer.all_special_ids
            self._prompt_lengths[prompt] = len(tokens) - ends
        return self._prompt_lengths[prompt]
