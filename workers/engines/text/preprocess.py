"""Checks and tokenises jobs, off the loop's thread."""

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec

from workers.context_length import context_length_error
from workers.engines.base import Refused, counted
from workers.engines.text.control_tokens import is_marked
from workers.engines.text.conversation import Conversation, Reading
from workers.engines.text.generate_steps import ENCODED
from workers.engines.text.grammar.compiler import Compiled, GrammarCompiler
from workers.engines.text.loading import is_panic
from workers.engines.text.lora_files import LoraWeights
from workers.protocol import ChatMessage, Grammar, Prompt, TextJob
from workers.protocol.bounds import MOST_LOGPROBS

_MOST_ECHOED = 2_000_000  #: characters of prompts in an answer: one frame holds it
_OF_ANSWER = 8  #: the part of a context that is left for an answer where turns may go
_LONGEST_PROMPT = 16_000_000  #: characters; tokenizers take about a hundred bytes for each


@dataclass(slots=True, frozen=True)
class PreparedPrompt:
    ids: list[int]  #: with which the sequence begins
    max_tokens: int
    encoded: int = 0  #: tokens of the prompt, if an encoder reads them: the sequence has others
    inputs: Mapping[str, Any] | None = None  #: what the model reads beside the sequence's tokens
    text: str = ""  #: of the prompt, if it is to be echoed
    reading: Reading | None = None  #: how the answer is read; None: its text is all there is
    grammar: Grammar | None = None  #: what the answer is held to

    @property
    def tokens(self) -> int:
        """Return the number of the prompt's tokens."""
        return self.encoded or len(self.ids)


@dataclass(slots=True, frozen=True)
class PreparedJob:
    job: TextJob
    prompts: list[PreparedPrompt]
    seed: int
    grammar: Future[Compiled] | None = None  #: of each of its texts, once it is compiled
    lora: LoraWeights | None = None  #: the job's, to be held; None: it has none, or it is held


class Preprocessor:
    """Renders, tokenises and checks jobs for one model."""

    def __init__(
        self,
        tokenizer: Any,
        chat: Conversation,
        *,
        max_context: int,
        vocab_size: int,
        grammars: GrammarCompiler,
        starts: Sequence[int] = (),
        scores_prompts: bool = True,
    ) -> None:
        """Set up; no other thread may use ``tokenizer``.

        ``starts``: what a decoder begins with, if an encoder reads the prompts.
        ``scores_prompts``: a prompt's tokens have log-probabilities, as each sees those before it.
        """
        self._scores_prompts = scores_prompts
        self._starts = list(starts)
        self._grammars = grammars
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)
        # A token is at most so many characters, so a longer text cannot fit the context.
        self._most_characters = min(_LONGEST_PROMPT, self._longest_token * max_context)

    def prepare(self, job: TextJob) -> PreparedJob:
        """Check and tokenise a job. Raises Refused: CONTEXT_LENGTH_EXCEEDED, INVALID_REQUEST.

        Raises Answered for a job that only asks for the number of its tokens.
        """
        self._check_tokens(job.sampling.logit_bias, "logit_bias")
        self._check_tokens(job.sampling.stop_token_ids, "stop_token_ids")
        if job.echo and job.sampling.logprobs is not None and not self._scores_prompts:
            raise Refused(
                "UNSUPPORTED_PARAMETER",
                "This model reads prompts in both directions: their tokens have no probabilities.",
                param="logprobs",
            )
        prompts: list[PreparedPrompt] = []
        for given in job.prompts or (job.prompt,):
            prompts.append(self._prepare_shortened(job, given))
            _check_echo(job, prompts)
        seed = job.sampling.seed
        if job.tool_choice != "auto":  # calls have a form of their own
            job = msgspec.structs.replace(job, grammar=None)
        return PreparedJob(
            job=job,
            prompts=prompts,
            seed=secrets.randbits(63) if seed is None else seed,
            grammar=self._compile(prompts[0].grammar),
        )

    def _compile(self, grammar: Grammar | None) -> "Future[Compiled] | None":
        """Begin to compile a grammar; raises Refused if it is known to be refused."""
        if grammar is None:
            return None
        compiled = self._grammars.compile(grammar)
        if compiled.done():
            compiled.result()
        return compiled

    def _prepare_shortened(self, job: TextJob, given: Prompt | None) -> PreparedPrompt:
        """Prepare a prompt without the oldest turns, as few as possible, if these may go.

        An eighth of the context is left for the answer, unless the last turn alone takes it.
        """
        if not job.drop_turns or job.messages is None:
            return self._prepare_prompt(job, given)
        messages, room = job.messages, min(job.sampling.max_tokens, self._max_context // _OF_ANSWER)
        begins = _turns(messages)
        fits: PreparedPrompt | None = None
        first, last = 0, len(begins) - 1
        at = 0  # most conversations fit as they are; of the others, half of what is left is tried
        while first <= last:
            try:
                fits = self._prepare_prompt(_from(job, messages, begins[at]), given, room)
            except Refused as refused:
                if refused.code != "CONTEXT_LENGTH_EXCEEDED":
                    raise
                first = at + 1
            else:
                last = at - 1
            at = (first + last) // 2
        return fits or self._prepare_prompt(_from(job, messages, begins[-1]), given)

    def _prepare_prompt(self, job: TextJob, given: Prompt | None, room: int = 0) -> PreparedPrompt:
        """Prepare a prompt after which more than ``room`` tokens can be made. Raises Refused."""
        param = "prompt" if job.messages is None else "messages"
        reading, grammar, inputs = None, job.grammar, None
        if isinstance(given, tuple):
            self._check_tokens(given, param)
            ids = list(given) or self._beginning(param)
        elif job.messages is not None:
            rendered = self._chat.render(job, self._most_characters)
            grammar, reading = self._chat.constrained(job, self._chat.reading(job, rendered))
            if any(each.pictures for each in job.messages):
                with self._lock:
                    ids, inputs = self._chat.encode_with_pictures(rendered, job.messages)
            else:
                ids = self._tokens(job, rendered, param)
        else:
            ids = self._tokens(job, given or "", param)
        if job.count_only:
            raise counted(job, len(ids))
        if self._starts:
            return self._for_encoder(job, ids, param, reading, grammar)
        text = ""
        if job.echo:
            text = self._decode(ids) if isinstance(given, tuple) else given or ""
        return PreparedPrompt(
            ids,
            self._fit(job, len(ids), param, room),
            inputs=inputs,
            text=text,
            reading=reading,
            grammar=grammar,
        )

    def _for_encoder(
        self,
        job: TextJob,
        ids: list[int],
        param: str,
        reading: Reading | None,
        grammar: Grammar | None,
    ) -> PreparedPrompt:
        """Return a prompt for an encoder: it takes nothing of the answer's context."""
        if job.echo or job.continue_final:
            raise Refused(
                "UNSUPPORTED_PARAMETER",
                "An encoder reads this model's prompts: an answer does not go on from one.",
                param="echo" if job.echo else "continue_final_message",
            )
        if len(ids) > self._max_context:
            raise self._too_long(job, len(ids), param)
        return PreparedPrompt(
            self._starts,
            self._fit(job, len(self._starts), param, 0),
            encoded=len(ids),
            inputs={ENCODED: ids},
            reading=reading,
            grammar=grammar,
        )

    def _decode(self, ids: list[int]) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(ids)
        return text

    def _check_tokens(self, tokens: Iterable[int], param: str) -> None:
        wrong = next((each for each in tokens if not 0 <= each < self._vocab_size), None)
        if wrong is not None:
            raise Refused(
                "INVALID_REQUEST",
                f"{param} names the token {wrong}; this model has {self._vocab_size}.",
                param=param,
            )

    def _tokens(self, job: TextJob, text: str, param: str) -> list[int]:
        if len(text) > self._most_characters:
            tokens = -(-len(text) // self._longest_token)
            raise self._too_long(job, tokens, param, at_least=True)
        if job.messages is None:
            ids = self._encode(text, special=job.special_tokens)
        else:
            # What an encoder reads ends in a token that no template writes.
            special = bool(self._starts)
            ids = self._encode(text, special=special, marked=is_marked(text) and not special)
        if not ids:
            ids = self._beginning(param)
        return ids

    def _encode(self, text: str, *, special: bool, marked: bool = False) -> list[int]:
        """Tokenise a text; a template has written the special tokens itself."""
        try:
            with self._lock:
                if marked:
                    return self._chat.encode(text)
                encoded = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=special)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise Refused(
                "INFERENCE_FAILED", "The model's tokenizer failed on this text."
            ) from error
        ids: list[int] = encoded.ids
        # A client that has rendered a template itself has written it already.
        twice = special and ids[:2] == [self._tokenizer.bos_token_id] * 2
        return ids[1:] if twice else ids

    def _beginning(self, param: str) -> list[int]:
        bos: int | None = self._tokenizer.bos_token_id
        if bos is None:
            raise Refused(
                "INVALID_REQUEST", "The prompt is empty, which this model cannot take.", param=param
            )
        return [bos]

    def _fit(self, job: TextJob, prompt_tokens: int, param: str, room: int) -> int:
        """Return how many tokens to make, cut to the context if the client left it open."""
        left = self._max_context - prompt_tokens
        wanted = job.sampling.max_tokens
        if wanted <= left:
            return wanted
        if job.clip_max_tokens and left > room:
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


def _turns(messages: Sequence[ChatMessage]) -> list[int]:
    """Return where a conversation may begin: at its beginning, or as a user's turn does."""
    later = range(2 if messages[0].role == "system" else 1, len(messages))
    return [0, *(number for number in later if messages[number].role == "user")]


def _from(job: TextJob, messages: tuple[ChatMessage, ...], begin: int) -> TextJob:
    """Return a job whose conversation begins later, but for what the system says first."""
    kept = messages[:1] if begin and messages[0].role == "system" else ()
    return msgspec.structs.replace(job, messages=(*kept, *messages[begin:]))


def _check_echo(job: TextJob, prompts: list[PreparedPrompt]) -> None:
    """Raise Refused if an answer cannot hold the echoed prompts with their log-probabilities."""
    if not job.echo:
        return
    if job.n * sum(len(each.text) for each in prompts) > _MOST_ECHOED:
        raise Refused(
            "INVALID_REQUEST",
            f"With 'echo' the prompts of all choices may have {_MOST_ECHOED} characters in all.",
            param="echo",
        )
    if job.sampling.logprobs is None:
        return
    of_each = job.n * (1 + job.sampling.logprobs)
    most = MOST_LOGPROBS // of_each
    tokens = sum(len(each.ids) + each.max_tokens for each in prompts)
    if tokens > most:
        raise Refused(
            "INVALID_REQUEST",
            f"With 'echo' and so many 'logprobs' prompts and texts may have {most} tokens in all.",
            param="logprobs",
            details={"tokens": tokens},
        )
