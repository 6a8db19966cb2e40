"""Runs an embedding engine with a tiny model beside sentence-transformers itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.support.engine_runs import run_to_end
from workers.engines.embedding.engine import EmbeddingEngine
from workers.protocol import EmbeddingDone, EmbeddingJob, Load

Vectors = NDArray[np.float32]


class EmbeddingHarness:
    """Holds one engine with a model."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.folder = folder
        self.engine = EmbeddingEngine()
        load = Load(model="e", engine="embedding", path=str(folder), threads=1, **spec)
        self.ready = self.engine.load(load, lambda _: None)

    def embed(self, texts: Sequence[str], **fields: Any) -> Vectors:
        """Return the vectors of a request that succeeds."""
        job = EmbeddingJob(id="job", texts=tuple(texts), **fields)
        done = run_to_end(self.engine, job)[-1]
        assert isinstance(done, EmbeddingDone), done
        return vectors_of(done)

    def expected(self, texts: Sequence[str], **options: Any) -> Vectors:
        """Return the library's own vectors."""
        model = SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        found: Vectors = np.asarray(model.encode(list(texts), **options), np.float32)
        return found

    def rank(self, query: str, texts: Sequence[str], **fields: Any) -> Vectors:
        """Return the scores of a request that succeeds."""
        return self.embed(texts, query=query, **fields)[:, 0]

    def expected_scores(self, query: str, texts: Sequence[str]) -> Vectors:
        """Return the library's own scores."""
        model = CrossEncoder(str(self.folder), device="cpu", local_files_only=True)
        found: Vectors = np.asarray(model.predict([(query, text) for text in texts]), np.float32)
        return found


def vectors_of(done: EmbeddingDone) -> Vectors:
    return np.frombuffer(done.vectors, "<f4").reshape(-1, done.dimensions)
