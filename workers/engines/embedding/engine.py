"""The embedding engine runs texts of all requests together, batched by tokens.

A cross-encoder reads pairs of a query and a text in the same way, and makes one number of each.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from workers.codes import Code
from workers.engines.batch_limit import BatchLimit
from workers.engines.defaults import EMBEDDING_JOBS, EMBEDDING_STEP_TOKENS, EMBEDDING_TEXTS
from workers.engines.embedding.loading import LoadedEmbedder, load
from workers.engines.embedding.pooling import pool
from workers.engines.embedding.request import Preprocessor, Request, TokenizedText
from workers.engines.job_table import JobTable
from workers.engines.torch_env import (
    dtype_name,
    held_bytes,
    is_out_of_memory,
    loading,
    must_end,
    release_cached,
)
from workers.engines.weight_progress import weights_read
from workers.protocol import EmbeddingJob, Event, Load, Ready

_STEP_TIMEOUT = {"cpu": 300.0, "cuda": 60.0}  #: seconds that one step may take
_LOOK_AHEAD = 1024  #: waiting texts among which those of a batch are looked for


class EmbeddingEngine:
    """Runs embedding jobs of one model; see ``workers.engines.base``.

    A batch holds the text that waits longest, and those whose length is nearest to its own: padding
    is computed like any token.
    """

    _loaded: LoadedEmbedder
    _preprocessor: Preprocessor

    def __init__(self) -> None:
        self._limit = BatchLimit(EMBEDDING_TEXTS)
        self._step_tokens = 0
        self._requests: JobTable[Request] = JobTable()
        self._waiting: list[TokenizedText] = []

    def load(self, spec: Load, progress: Callable[[float], None]) -> Ready:
        progress(0.0)
        with loading(spec), weights_read(Path(spec.path), progress):
            self._loaded = load(spec)
        self._preprocessor = Preprocessor(self._loaded)
        self._step_tokens = EMBEDDING_STEP_TOKENS[spec.device]
        progress(1.0)
        return Ready(
            slots=spec.max_batch or EMBEDDING_JOBS,
            max_context=self._loaded.max_tokens,
            dtype=dtype_name(self._loaded.dtype),
            device=spec.device,
            step_timeout=_STEP_TIMEOUT[spec.device],
        )

    def prepare(self, job: EmbeddingJob) -> Request:
        return self._preprocessor.prepare(job)

    def submit(self, prepared: Request) -> None:
        self._requests[prepared.job.id] = prepared
        self._waiting += prepared.texts

    def cancel(self, job_id: str) -> None:
        self._requests.cancel(job_id)

    # ---- one step --------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Compute the vectors of one batch."""
        events = self._requests.end_cancelled(self._end_cancelled)
        batch = self._take_batch()
        if not batch:
            return events
        for text in batch:
            events += text.request.start()
        error: Exception | None = None
        try:
            vectors = self._compute(batch).cpu()
        except Exception as caught:  # noqa: BLE001  whatever a model raises ends its jobs only
            error = caught.with_traceback(None)  # it holds on to all that was computed
        if error is not None:
            return events + self._handle_error(batch, error)
        self._limit.passed()
        for text, vector in zip(batch, vectors, strict=True):
            events += self._keep(text, vector)
        for request in dict.fromkeys(text.request for text in batch):
            if request.job.id in self._requests:
                events += request.progress()
        return events

    def _take_batch(self) -> list[TokenizedText]:
        """Take the texts of the next batch out of those that wait."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        nearest = sorted(
            self._waiting[:_LOOK_AHEAD], key=lambda text: abs(len(text.tokens) - len(first.tokens))
        )
        nearest.remove(first)
        batch, longest = [first], len(first.tokens)
        for text in nearest:
            longest = max(longest, len(text.tokens))
            full = len(batch) >= self._limit.now
            if full or longest * (len(batch) + 1) > self._step_tokens:
                break
            batch.append(text)
        taken = set(map(id, batch))
        self._waiting = [text for text in self._waiting if id(text) not in taken]
        return batch

    def _compute(self, batch: list[TokenizedText]) -> Tensor:
        """Return the vectors or scores of a batch, float32 [texts, dimensions]."""
        loaded = self._loaded
        longest = max(len(text.tokens) for text in batch)
        ids = torch.full((len(batch), longest), loaded.tokenizer.pad_token_id or 0)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.tokens)] = torch.tensor(text.tokens)
            mask[row, : len(text.tokens)] = 1
            types[row, : len(text.types)] = torch.tensor(text.types)
        inputs = {"input_ids": ids.to(loaded.device), "attention_mask": mask.to(loaded.device)}
        if batch[0].types:
            inputs["token_type_ids"] = types.to(loaded.device)
        output = loaded.model(**inputs)
        if loaded.layout.score is not None:
            return loaded.finish(output.logits.float())
        skip = torch.tensor([text.skip for text in batch]).to(loaded.device)
        states, mask = output.last_hidden_state, inputs["attention_mask"]
        return loaded.finish(pool(states, mask, loaded.layout.pooling, skip))

    def _keep(self, text: TokenizedText, vector: Tensor) -> list[Event]:
        request = text.request
        if request.job.id not in self._requests:
            return []  # another of its texts has failed in this batch
        if not bool(vector.isfinite().all()):
            return self._fail(request, "INFERENCE_FAILED", "The model's output is not a number.")
        if not request.add(text.index, vector):
            return []
        del self._requests[request.job.id]
        return [request.done()]

    # ---- errors ----------------------------------------------------------------------------------

    def _handle_error(self, batch: list[TokenizedText], error: Exception) -> list[Event]:
        """Repeat in smaller batches if memory ran out; any other error ends these jobs."""
        code: Code = "INFERENCE_FAILED"
        message = f"The model failed on this text ({type(error).__name__})."
        if is_out_of_memory(error):
            release_cached(self._loaded.device)
            if len(batch) > 1:
                self._limit.halve(len(batch))
                self._waiting = batch + self._waiting
                return []
            code, message = "OUT_OF_MEMORY", "The device ran out of memory on this text."
        elif must_end(error, self._loaded.device):
            raise error
        requests = dict.fromkeys(text.request for text in batch)
        return [event for request in requests for event in self._fail(request, code, message)]

    def _fail(self, request: Request, code: Code, message: str) -> list[Event]:
        self._forget(request)
        return [request.failed(code, message)]

    def _end_cancelled(self, request: Request) -> Event:
        self._forget(request)
        return request.cancelled()

    def _forget(self, request: Request) -> None:
        del self._requests[request.job.id]
        self._waiting = [text for text in self._waiting if text.request is not request]

    # ---- resources -------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def device_bytes(self) -> int | None:
        return held_bytes(self._loaded.device)

    def books(self) -> dict[str, int]:
        return {"requests": len(self._requests), "waiting": len(self._waiting)}

    def close(self) -> None:
        self._requests.clear()
        self._waiting.clear()
