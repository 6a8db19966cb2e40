"""Checks jobs, and turns their files into features on threads of its own.

An hour of audio takes seconds to decode; neither a short file nor a cancel waits for that.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from workers.engines.base import Refused
from workers.engines.languages import language_code
from workers.engines.transcription.audio import Bounds, Samples, read
from workers.engines.transcription.features import LogMel, Recording
from workers.engines.transcription.loading import LoadedWhisper
from workers.engines.transcription.request import Request
from workers.protocol import TranscriptionJob

_DECODERS = 2  #: files that are decoded at once; others wait


@dataclass(slots=True, eq=False)
class Decoding:
    """Holds a file that is being decoded; ``result`` raises Refused for what is no audio."""

    job: TranscriptionJob
    prompt: list[int]
    language: str | None
    window: int  #: frames
    recording: Future[Recording]
    aborted: Event = field(default_factory=Event)

    def result(self) -> Request:
        recording = self.recording.result()
        # In a longer file, timestamps are how the next window is found.
        timestamps = self.job.timestamps != "none" or recording.frames > self.window
        return Request(self.job, recording, self.prompt, self.language, timestamps)

    def abort(self) -> None:
        """Read the file no further: its job was cancelled."""
        self.aborted.set()
        self.recording.cancel()


class Preprocessor:
    """Checks the jobs of one model, and decodes their files."""

    def __init__(self, loaded: LoadedWhisper) -> None:
        self._threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._decoding_config = loaded.decoding
        self._mel = LogMel(loaded.extractor)
        # A copy: two threads that use one fast tokenizer get each other's results.
        self._tokenizer = copy.deepcopy(loaded.tokenizer)

    def prepare(self, job: TranscriptionJob) -> Decoding:
        """Check a job and begin to decode its file. Raises Refused for what the job shows."""
        language = self._language(job)
        self._check_task(job)
        if job.timestamps == "word" and not self._decoding_config.alignment_heads:
            raise _unsupported("timestamps", "This model cannot tell when a word was said.")
        prompt = self._prompt(job.prompt) if job.prompt and job.prompt.strip() else []
        aborted = Event()
        recording = self._threads.submit(self._record, job, aborted)
        return Decoding(job, prompt, language, self._decoding_config.window, recording, aborted)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _record(self, job: TranscriptionJob, aborted: Event) -> Recording:
        most = Bounds(job.max_seconds, job.max_channels, job.max_sample_rate)

        def blocks() -> Iterator[Samples]:
            for block in read(Path(job.path), self._mel.rate, most, block=self._mel.block):
                if aborted.is_set():
                    return
                yield block

        return self._mel.record(blocks())

    def _language(self, job: TranscriptionJob) -> str | None:
        known = self._decoding_config.languages
        if job.language is None:
            return None if known else "en"
        code = language_code(job.language)
        if code is None or code not in (known or {"en": 0}):
            raise Refused(
                "INVALID_REQUEST",
                f"The model does not know the language '{job.language[:40]}'.",
                param="language",
                details={"languages": sorted(known) or ["en"]},
            )
        return code

    def _check_task(self, job: TranscriptionJob) -> None:
        if job.task not in (self._decoding_config.tasks or ("transcribe",)):
            raise _unsupported("task", f"This model cannot {job.task}.")

    def _prompt(self, text: str) -> list[int]:
        """Return the text's last tokens, as many as the model was trained to read."""
        if self._decoding_config.previous is None:
            raise _unsupported("prompt", "This model reads no prompt.")
        try:
            tokens = self._tokenizer.get_prompt_ids(text, return_tensors="np").tolist()[1:]
        except ValueError as error:
            message = "'prompt' holds a token that is the model's own."
            raise Refused("INVALID_REQUEST", message, param="prompt") from error
        most = self._decoding_config.max_tokens // 2 - 1
        return [self._decoding_config.previous, *tokens[-most:]]


def _unsupported(param: str, message: str) -> Refused:
    return Refused("UNSUPPORTED_PARAMETER", message, param=param)
