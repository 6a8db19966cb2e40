"""Checks a job, and turns its file into features, off the thread that computes."""

import copy
from pathlib import Path

from workers.engines.base import Refused
from workers.engines.transcription.audio import Bounds, read
from workers.engines.transcription.features import LogMel
from workers.engines.transcription.loading import LoadedWhisper, language_code
from workers.engines.transcription.request import Request
from workers.protocol import TranscriptionJob


class Intake:
    def __init__(self, loaded: LoadedWhisper) -> None:
        self._rules = loaded.rules
        self._mel = LogMel(loaded.extractor)
        # A copy: two threads that use one fast tokenizer get each other's results.
        self._tokenizer = copy.deepcopy(loaded.tokenizer)

    def prepare(self, job: TranscriptionJob) -> Request:
        """Raises Refused; what costs nothing is checked before the file is decoded."""
        language = self._language(job)
        self._check_task(job)
        if job.timestamps == "word" and not self._rules.alignment_heads:
            raise _unsupported("timestamps", "This model cannot tell when a word was said.")
        prompt = self._prompt(job.prompt) if job.prompt and job.prompt.strip() else []
        mel = self._mel
        most = Bounds(job.max_seconds, job.max_channels, job.max_sample_rate)
        recording = mel.record(read(Path(job.path), mel.rate, most, block=mel.block))
        # In a longer file, timestamps are how the next window is found.
        timestamps = job.timestamps != "none" or recording.frames > self._rules.window
        return Request(job, recording, prompt, language, timestamps)

    def _language(self, job: TranscriptionJob) -> str | None:
        known = self._rules.languages
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
        if job.task not in (self._rules.tasks or ("transcribe",)):
            raise _unsupported("task", f"This model cannot {job.task}.")

    def _prompt(self, text: str) -> list[int]:
        """Its last tokens, which are as many as the model was trained to read before a window."""
        if self._rules.previous is None:
            raise _unsupported("prompt", "This model reads no prompt.")
        try:
            tokens = self._tokenizer.get_prompt_ids(text, return_tensors="np").tolist()[1:]
        except ValueError as error:
            message = "'prompt' holds a token that is the model's own."
            raise Refused("INVALID_REQUEST", message, param="prompt") from error
        return [self._rules.previous, *tokens[1 - self._rules.longest // 2 :]]


def _unsupported(param: str, message: str) -> Refused:
    return Refused("UNSUPPORTED_PARAMETER", message, param=param)
