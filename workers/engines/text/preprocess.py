"""Checks and tokenises jobs, off the loop's thread."""

import secrets
import threading
from dataclasses import dataclass
from typing import Any

from workers.context_length import context_length_error
from workers.engines.base import Refused, counted
from workers.engines.text.loading import is_panic
from workers.engines.text.templates import BrokenTemplate, ChatTemplate
from workers.protocol import TextJob

_LONGEST_PROMPT = 16_000_000  #: characters; tokenizers take about a hundred bytes for each


@dataclass(slots=True, frozen=True)
class PreparedJob:
    job: TextJob
    prompt: list[int]
    max_tokens: int
    seed: int


class Preprocessor:
    """Renders, tokenises and checks jobs for one model."""

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate | BrokenTemplate | None,
        *,
        max_context: int,
        vocab_size: int,
    ) -> None:
        """Set up; no other thread may use ``tokenizer``."""
        self._tokenizer = tokenizer
        self._template = template
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)

    def prepare(self, job: TextJob) -> PreparedJob:
        """Check and tokenise a job. Raises Refused: CONTEXT_LENGTH_EXCEEDED, INVALID_REQUEST.

        Raises Answered for a job that only asks for the number of its tokens.
        """
        self._check_bias(job)
        param = "prompt" if job.messages is None else "messages"
        prompt = self._tokens(job, param)
        if job.count_only:
            raise counted(job, len(prompt))
        seed = job.sampling.seed
        return PreparedJob(
            job=job,
            prompt=prompt,
            max_tokens=self._fit(job, len(prompt), param),
            seed=secrets.randbits(63) if seed is None else seed,
        )

    def _check_bias(self, job: TextJob) -> None:
        wrong = [t for t in job.sampling.logit_bias if not 0 <= t < self._vocab_size]
        if wrong:
            raise Refused(
                "INVALID_REQUEST",
                f"logit_bias names the token {wrong[0]}; this model has {self._vocab_size}.",
                param="logit_bias",
            )

    def _tokens(self, job: TextJob, param: str) -> list[int]:
        # A token is at most so many characters, so a longer text cannot fit the context.
        most = min(_LONGEST_PROMPT, self._longest_token * self._max_context)
        if job.messages is not None:
            if self._template is None:
                raise Refused(
                    "INVALID_REQUEST", "This model has no chat template.", param="messages"
                )
            text = self._template.render(job.messages, most)
        else:
            text = job.prompt or ""
        if len(text) > most:
            tokens = -(-len(text) // self._longest_token)
            raise self._too_long(job, tokens, param, at_least=True)
        ids = self._encode(text, special=job.messages is None)
        if not ids:
            ids = self._beginning(param)
        return ids

    def _encode(self, text: str, *, special: bool) -> list[int]:
        """Tokenise a text; a template has written the special tokens itself."""
        try:
            with self._lock:
                encoded = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=special)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise Refused(
                "INFERENCE_FAILED", "The model's tokenizer failed on this text."
            ) from error
        ids: list[int] = encoded.ids
        return ids

    def _beginning(self, param: str) -> list[int]:
        bos: int | None = self._tokenizer.bos_token_id
        if bos is None:
            raise Refused(
                "INVALID_REQUEST", "The prompt is empty, which this model cannot take.", param=param
            )
        return [bos]

    def _fit(self, job: TextJob, prompt_tokens: int, param: str) -> int:
        """Return how many tokens to make, cut to the context if the client left it open."""
        left = self._max_context - prompt_tokens
        wanted = job.sampling.max_tokens
        if wanted <= left:
            return wanted
        if job.clip_max_tokens and left > 0:
            return left
        raise self._too_long(job, prompt_tokens, "max_tokens" if left > 0 else param)

    def _too_long(
        self, job: TextJob, prompt_tokens: int, param: str, *, at_least: bool = False
    ) -> Refused:
        asked = None if job.clip_max_tokens else job.sampling.max_tokens
        message, details = context_length_error(
            self._max_context, prompt_tokens, max_tokens=asked, at_least=at_least
        )
        return Refused("CONTEXT_LENGTH_EXCEEDED", message, param=param, details=details)
