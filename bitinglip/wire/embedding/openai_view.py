"""OpenAI's surface shows vectors as lists of numbers, or as base64 of little-endian float32."""

import msgspec

from bitinglip.scheduling.event_log import EventLog
from bitinglip.wire.embedding.openai import Encoding
from bitinglip.wire.embedding.result import embedding_usage, encoded_vectors
from bitinglip.wire.openai_view import OpenAIView
from workers import protocol

_json = msgspec.json.Encoder()


class EmbeddingView(OpenAIView):
    """Shows the vectors of a request, one for each text in its order."""

    def __init__(self, event_log: EventLog, request_id: str, *, encoding: Encoding) -> None:
        super().__init__(event_log, request_id)
        self._encoding = encoding
        self._vectors: list[msgspec.Raw] = []

    async def prepare_final(self) -> None:
        done = self._event_log.final
        assert isinstance(done, protocol.EmbeddingDone)
        self._vectors = await encoded_vectors(done, base64=self._encoding == "base64")

    def body(self) -> bytes:
        done = self._event_log.final
        assert isinstance(done, protocol.EmbeddingDone)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(self._vectors)
        ]
        answer = {
            "object": "list",
            "data": data,
            "model": self._event_log.job.model,
            "usage": embedding_usage(done),
        }
        return _json.encode(answer)
