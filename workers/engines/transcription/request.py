"""Keeps a file in the engine: its position, its attempts, its segments so far."""

import math
from dataclasses import dataclass, field

import torch

from workers.codes import Code
from workers.engines.languages import language_name
from workers.engines.transcription.activity import Activity
from workers.engines.transcription.decoding import Attempt
from workers.engines.transcription.features import Recording
from workers.engines.transcription.loading import DecodingConfig
from workers.protocol import (
    Cancelled,
    Failed,
    Progress,
    Segment,
    SegmentDelta,
    Started,
    TranscriptionDone,
    TranscriptionJob,
)

_TEMPERATURE_STEP = 0.2  #: from one attempt at a window to the next
_SEED = 0


@dataclass(slots=True, eq=False)
class Request:
    """Holds the state of a job between its decoding and its final event.

    ``prompt`` holds the tokens before the start of the transcript, ``language`` is a code.
    """

    job: TranscriptionJob
    recording: Recording
    prompt: list[int]
    language: str | None
    timestamps: bool
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(_SEED))
    encoded: torch.Tensor | None = None  #: the encoder's output of the present window
    seek: int = 0  #: the frame where the window begins
    attempt: Attempt | None = None
    state: torch.Tensor | None = None  #: of ``random`` when the attempt began
    bad: list[Attempt] = field(default_factory=list)  #: at this window that were not good enough
    activity: Activity = Activity.LIVELY  #: in the window
    segments: list[Segment] = field(default_factory=list)
    steps: int = 0  #: windows that are done
    has_started: bool = False

    def next_attempt(self, decoding: DecodingConfig) -> Attempt:
        """Begin the next attempt at the present window."""
        tokens = [*self.prompt, decoding.start]
        if decoding.languages:
            assert self.language is not None
            tokens.append(decoding.languages[self.language])
        if decoding.tasks:
            tokens.append(decoding.tasks[self.job.task])
        if not self.timestamps:
            tokens.append(decoding.no_timestamps)
        temperature = self.temperatures[len(self.bad)]
        self.attempt = Attempt(tokens, self.timestamps, temperature, self.random)
        self.state = self.random.get_state()
        return self.attempt

    def undo_attempt(self) -> None:
        """Let the present attempt be repeated, with the same tokens."""
        if self.attempt is not None and self.state is not None:
            self.random.set_state(self.state)
        self.attempt = None

    @property
    def temperatures(self) -> list[float]:
        """Return the temperatures of a window's attempts, from the job's own up to 1."""
        first = self.job.temperature
        count = 1 + max(0, math.floor((1.0 - first) / _TEMPERATURE_STEP + 1e-6))
        return [round(first + number * _TEMPERATURE_STEP, 6) for number in range(count)]

    @property
    def frames(self) -> int:
        """Count the frames from the window on, with the silence that fills up the file."""
        return self.recording.frames - self.seek

    @property
    def ended(self) -> bool:
        return self.seek >= self.recording.file_frames

    def retries(self, attempt: Attempt, decoding: DecodingConfig, vocabulary: int) -> bool:
        """True if the attempt is too bad to be taken, and another one is left and worth it."""
        if len(self.bad) + 1 >= len(self.temperatures) or self._is_steady:
            return False
        return not self.is_silent(attempt, decoding) and _is_bad(attempt, decoding, vocabulary)

    def is_silent(self, attempt: Attempt, decoding: DecodingConfig) -> bool:
        """True if no one speaks in the window, so that its text is made up.

        The original decoder believes its estimate of that only if it is unsure of the text, too;
        of silence it is often sure to have heard a word. A sound without a rise or fall counts as
        much as its doubt; where there is no sound at all, nothing is believed.
        """
        doubtful = attempt.avg_logprob < decoding.logprob or self._is_steady
        silent = doubtful and attempt.no_speech_prob > decoding.no_speech
        return silent or self.activity == Activity.NOTHING

    @property
    def _is_steady(self) -> bool:
        return self.activity < Activity.LIVELY

    def choose(self, last: Attempt, decoding: DecodingConfig, vocabulary: int) -> Attempt | None:
        """Return the attempt to take after the last one; None if the window's text is made up.

        What is bad and has no voices under it is made up. People do say things again: if all that
        is wrong with an earlier attempt is that it repeats itself, and it came to an end, it is
        better than the last one, which was drawn the most freely.
        """
        if self.is_silent(last, decoding):
            return None
        if not _is_bad(last, decoding, vocabulary):
            return last
        if self._is_steady:
            return None
        likely = [
            each
            for each in [last, *self.bad]
            if each.avg_logprob >= decoding.logprob and each.tokens[-1] == decoding.end
        ]
        return max(likely, key=lambda each: each.avg_logprob, default=last)

    def advance(self, frames: int) -> None:
        """Go on to the next window."""
        self.seek += frames
        self.steps += 1
        self.bad = []
        self.encoded = self.attempt = None

    # ---- events ----------------------------------------------------------------------------------

    def start(self) -> list[Started]:
        """Note that work on the job begins; returns an event the first time."""
        if self.has_started:
            return []
        self.has_started = True
        return [Started(id=self.job.id)]

    def add(self, segments: list[Segment]) -> list[SegmentDelta | Progress]:
        """Add a window's segments; returns the events of them and of the seconds that are done."""
        first = len(self.segments)
        self.segments += segments
        if not self.job.stream:
            return []
        steps = math.ceil(self.recording.seconds)
        done = math.floor(self.recording.seconds * self.seek / self.recording.file_frames)
        return [
            *(
                SegmentDelta(id=self.job.id, segment=segment, index=first + number)
                for number, segment in enumerate(segments)
            ),
            Progress(id=self.job.id, step=min(done, steps), steps=steps),
        ]

    def done(self) -> TranscriptionDone:
        return TranscriptionDone(
            id=self.job.id,
            text="".join(segment.text for segment in self.segments).strip(),
            language=self.language,
            language_name=language_name(self.language),
            duration=self.recording.seconds,
            segments=tuple(self.segments),
        )

    def failed(self, code: Code, message: str) -> Failed:
        return Failed(id=self.job.id, code=code, message=message)

    def cancelled(self) -> Cancelled:
        return Cancelled(id=self.job.id, steps=self.steps)


def _is_bad(attempt: Attempt, decoding: DecodingConfig, vocabulary: int) -> bool:
    return (
        attempt.avg_logprob < decoding.logprob
        or attempt.compression_ratio(vocabulary) > decoding.compression
    )
