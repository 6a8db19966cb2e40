"""Speaking HTTP with a server that answers for a model."""

import asyncio
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from bitinglip.settings.upstream import Upstream
from bitinglip.upstreams.answer import AnswerReader
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.json_body import JsonBody
from bitinglip.upstreams.request import LONG, Request, encoded
from bitinglip.upstreams.servers import Servers
from bitinglip.upstreams.worker import UpstreamWorker
from workers.engines.base import Refused
from workers.framing import FrameReader
from workers.protocol import (
    Cancel,
    Cancelled,
    ChatMessage,
    EmbeddingJob,
    Sampling,
    TextJob,
    TranscriptionJob,
)

ANSWER = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": "stop"}]}\n\n',
    b"data: [DONE]\n\n",
    b"",
)
REASON = b'{"error": {"message": "This is no audio."}}'


class Counted(BaseHTTPRequestHandler):
    """Streams an answer in chunks, on connections that it keeps and counts."""

    protocol_version = "HTTP/1.1"
    connections = 0
    early: int | None = None  #: the status that it answers with before it has read the request

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_POST(self) -> None:
        if self.early is not None:
            self.send_response(self.early)
            self.send_header("content-length", str(len(REASON)))
            self.end_headers()
        self.rfile.read(int(self.headers["content-length"]))
        if self.early is not None:
            self.wfile.write(REASON)
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in ANSWER:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Counted.connections = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Counted) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def job() -> TextJob:
    return TextJob(id="j", messages=(ChatMessage("user", "a"),), sampling=Sampling(max_tokens=1))


def client(http: aiohttp.ClientSession, upstream: Upstream) -> UpstreamClient:
    return UpstreamClient(http, AnswerMemory(), upstream, "m", Servers(upstream.url, "least_work"))


def test_upstream_s_connection_is_kept_for_the_next_request(url: str) -> None:
    async def tell(_: object) -> None:
        pass

    async def run() -> None:
        async with open_http() as http:
            asked = client(http, Upstream(url=[url]))
            for _ in range(3):
                done = await asked.run(job(), AnswerReader(job()), tell)
                assert done.choices[0].text == "so"

    asyncio.run(run())
    assert Counted.connections == 1


def test_upstream_that_answers_while_a_file_is_sent_is_understood(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").write_bytes(bytes(16 << 20))  # more than sockets hold
    monkeypatch.setattr(Counted, "early", 400)
    asked = TranscriptionJob(id="j", path=str(tmp_path / "audio"), max_seconds=1.0)

    async def run() -> None:
        async with open_http() as http:
            await client(http, Upstream(url=[url], read_timeout=30)).transcribe(asked)

    with pytest.raises(Refused, match="This is no audio"):
        asyncio.run(run())


@pytest.mark.parametrize("key", ["", "sk-\u00e9", "sk-1\nsk-2"])
def test_upstream_s_key_file_that_holds_no_key_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(key)
    upstream = Upstream(url=["http://127.0.0.1:9/v1"], key_file=str(tmp_path / "key"))

    async def run() -> None:
        async with open_http() as http:
            await client(http, upstream).open()

    with pytest.raises(Refused, match="one line"):
        asyncio.run(run())


def test_cancel_of_an_upstream_s_job_before_it_begins_has_its_final_event(url: str) -> None:
    async def run() -> bytes:
        async with open_http() as http:
            worker = UpstreamWorker(client(http, Upstream(url=[url])))
            worker.send([job(), Cancel(id="j")])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            told = os.read(worker.events_fd, 1 << 16)
            worker.kill()
            worker.close()
            return told

    assert Cancelled(id="j", completion_tokens=0) in FrameReader().feed(asyncio.run(run()))


@pytest.mark.parametrize("long", [False, True])
def test_long_request_is_encoded_beside_the_event_loop(
    url: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(request: Request) -> JsonBody:
        threads.append(threading.current_thread())
        return encoded(request)

    text = "a" * (LONG + 1 if long else 1)
    texts = replace(job(), messages=(ChatMessage("user", text),))
    monkeypatch.setattr("bitinglip.upstreams.client.encoded", noted)

    async def run() -> None:
        async def tell(_: object) -> None:
            pass

        async with open_http() as http:
            asked = client(http, Upstream(url=[url]))
            await asked.run(texts, AnswerReader(job()), tell)
            with pytest.raises(Refused):  # this server streams its answers
                await asked.embed(EmbeddingJob(id="e", texts=(text,)))
            with pytest.raises(Refused):
                await asked.embed(EmbeddingJob(id="r", texts=("b",), query=text))

    asyncio.run(run())
    assert [each is threading.main_thread() for each in threads] == [not long] * 3
