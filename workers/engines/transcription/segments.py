"""Builds the segments that the client sees from a window's tokens."""

import copy

from transformers.convert_slow_tokenizer import bytes_to_unicode

from workers.engines.transcription.decoding import Attempt
from workers.engines.transcription.loading import LoadedWhisper
from workers.engines.transcription.request import Request
from workers.engines.transcription.windows import Piece, cut, whole
from workers.engines.transcription.word_times import token_times, words_of
from workers.protocol import Segment, Word

#: the bytes that the characters of a byte-level vocabulary stand for
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
_TIMESTAMP_SECONDS = 0.02  #: in all models of the family


class SegmentBuilder:
    """Builds segments with the tokenizer and the rules of one model."""

    def __init__(self, loaded: LoadedWhisper) -> None:
        self._loaded = loaded
        self._decoding_config = loaded.decoding
        self._vocabulary = int(loaded.model.config.vocab_size)
        # A copy: two threads that use one fast tokenizer get each other's results.
        self._tokenizer = copy.deepcopy(loaded.tokenizer)

    def build(self, request: Request, attempt: Attempt, frames: int) -> tuple[list[Segment], int]:
        """Return the segments with text in a window of ``frames``, and how far to advance."""
        decoding = self._decoding_config
        tokens = attempt.tokens[:-1] if attempt.tokens[-1] == decoding.end else attempt.tokens
        if request.timestamps:
            found = cut(tokens, decoding.first_timestamp, frames, decoding.stride)
        else:
            found = whole(tokens, frames, decoding.stride)
        times = self._times(request, attempt)
        segments = [self._segment(request, attempt, piece, times) for piece in found.pieces]
        length = request.recording.seconds  # text after the end is made up
        kept = [each for each in segments if each.text.strip() and each.start < length]
        return kept, found.advance

    def _times(self, request: Request, attempt: Attempt) -> list[float]:
        """Return when the window begins and each token ends; empty if no words are wanted."""
        if request.job.timestamps != "word":
            return []
        assert request.encoded is not None
        left = request.recording.file_frames - request.seek
        ends = token_times(self._loaded, request.encoded, attempt.prompt, attempt.tokens, left)
        return [0.0, *ends]

    def _segment(
        self, request: Request, attempt: Attempt, piece: Piece, times: list[float]
    ) -> Segment:
        offset = request.seek * _TIMESTAMP_SECONDS / self._decoding_config.stride
        length = request.recording.seconds
        tokens = attempt.tokens[piece.first : piece.last]
        start, end = (
            min(length, offset + mark * _TIMESTAMP_SECONDS) for mark in (piece.start, piece.end)
        )
        return Segment(
            start=start,
            end=max(start, end),
            text=self._tokenizer.decode(
                [each for each in tokens if each < self._decoding_config.end]
            ),
            tokens=tuple(tokens),
            words=self._words(request, attempt, piece, times) if times else (),
            logprobs=self._logprobs(attempt, piece) if request.job.logprobs else (),
            avg_logprob=attempt.avg_logprob,
            no_speech_prob=attempt.no_speech_prob,
            temperature=attempt.temperature,
            compression_ratio=attempt.compression_ratio(self._vocabulary),
        )

    def _logprobs(self, attempt: Attempt, piece: Piece) -> tuple[tuple[bytes, float], ...]:
        """Return the bytes of each token of text, which may be less than a character, and how
        likely it was."""
        places = [
            each
            for each in range(piece.first, piece.last)
            if attempt.tokens[each] < self._decoding_config.end
        ]
        written = self._tokenizer.convert_ids_to_tokens([attempt.tokens[each] for each in places])
        return tuple(
            (bytes(_BYTES.get(char, 32) for char in token), attempt.logprobs[each])
            for token, each in zip(written, places, strict=True)
        )

    def _words(
        self, request: Request, attempt: Attempt, piece: Piece, times: list[float]
    ) -> tuple[Word, ...]:
        """Return the words of a piece; ids below that of the end token are text."""
        offset = request.seek * _TIMESTAMP_SECONDS / self._decoding_config.stride
        length = request.recording.seconds
        places = [
            i
            for i in range(piece.first, piece.last)
            if attempt.tokens[i] < self._decoding_config.end
        ]
        spans = [
            (min(length, offset + times[i]), min(length, offset + times[i + 1])) for i in places
        ]
        tokens = [attempt.tokens[i] for i in places]
        return words_of(self._tokenizer, tokens, spans, request.language)
