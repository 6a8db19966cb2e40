"""Traces of requests, as a collector gets them from a whole server."""

import time
from collections.abc import Iterator

import httpx
import pytest

from bitinglip.tracing.tracer import Tracer
from tests.support.api_server import ADMIN, Served, serve
from tests.support.trace_collector import Spanned, TraceCollector, collect_traces
from tests.support.wait import eventually
from workers import protocol

SECRET = "a prompt that no other key may read"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    with collect_traces() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: TraceCollector) -> Iterator[Served]:
    tracing = {"tracing": {"endpoint": collector.url}}
    with serve(tmp_path_factory.mktemp("traces"), telemetry=tracing) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=server.headers(ADMIN), timeout=30) as found:
        yield found


def traced(server: Served, collector: TraceCollector, answer: httpx.Response) -> dict[str, Spanned]:
    """Return the spans of the request's trace, by name, once its root is there."""
    _, trace_id, span_id, _ = answer.headers["traceresponse"].split("-")
    tracer = server.services.tracer
    assert isinstance(tracer, Tracer)

    def complete() -> bool:
        tracer.flush()
        return any(each.span_id == span_id for each in list(collector.spans))

    eventually(complete)
    return collector.trace(trace_id)


def chat(client: httpx.Client, model: str = "demo", **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "stream": True}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_trace_joins_request_queue_load_and_engine(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    spans = traced(server, collector, chat(client, "org/deep"))  # which is not loaded yet
    root, job = spans["POST /v1/chat/completions"], spans["chat org/deep"]
    parents = {
        "chat org/deep": root,
        "queue": job,
        "model.load": spans["queue"],
        "engine": job,
        "prefill": spans["engine"],
        "decode": spans["engine"],
    }
    assert spans.keys() == {root.name, *parents}
    for name, parent in parents.items():
        assert spans[name].parent_id == parent.span_id, name
        # The clocks of both are read one after the other, so a little may be missing.
        assert parent.start - 10**7 <= spans[name].start <= spans[name].end, name
        assert spans[name].end <= parent.end + 10**7, name
    assert spans["queue"].end <= spans["engine"].start + 10**7
    assert root.attributes["http.response.status_code"] == "200"
    assert job.attributes["gen_ai.operation.name"] == "chat"
    assert job.attributes["gen_ai.usage.output_tokens"] == "2"
    assert float(job.attributes["gen_ai.latency.time_to_first_token"]) > 0


def test_trace_goes_on_from_the_client_s_into_the_worker(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    answer = chat(client, traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="vendor=1")
    root = traced(server, collector, answer)["POST /v1/chat/completions"]
    assert root.trace_id == TRACE
    assert root.parent_id == SPAN
    sent = server.workers.jobs[-1]
    assert isinstance(sent, protocol.TextJob)
    assert sent.trace == f"00-{TRACE}-{root.span_id}-01"


def test_trace_is_left_out_where_the_client_leaves_it_out(client: httpx.Client) -> None:
    answer = chat(client, traceparent=f"00-{TRACE}-{SPAN}-00")
    assert answer.status_code == 200
    assert "traceresponse" not in answer.headers


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_trace_is_none_of_probes(client: httpx.Client, path: str) -> None:
    assert "traceresponse" not in client.get(path).headers


def test_trace_of_a_task_that_outlives_its_request_has_its_job(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    body = {"model": "demo", "prompt": SECRET, "async": True}
    answer = client.post("/api/v1/inference/text-generation", json=body)
    spans = traced(server, collector, answer)
    trace_id = answer.headers["traceresponse"].split("-")[1]

    def complete() -> bool:
        spans.update(traced(server, collector, answer))
        return "text_completion demo" in collector.trace(trace_id)

    eventually(complete)
    root = spans["POST /api/v1/inference/text-generation"]
    assert collector.trace(trace_id)["text_completion demo"].parent_id == root.span_id


def test_trace_says_that_a_job_failed_and_why(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    body = {"model": "demo", "prompt": "!crash"}
    spans = traced(server, collector, client.post("/v1/completions", json=body))
    job, root = spans["text_completion demo"], spans["POST /v1/completions"]
    assert job.failed
    assert job.attributes["error.type"] == "WORKER_CRASHED"
    assert root.failed
    assert root.attributes["http.response.status_code"] == "502"


def test_trace_holds_no_prompt_no_answer_and_no_key(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    traced(server, collector, chat(client))
    missing = client.get("/v1/a-path-that-a-client-made-up?query=hidden")
    spans = traced(server, collector, missing)
    assert spans.keys() == {"GET _other"}
    sent = b"".join(collector.bodies)
    key = server.keys[ADMIN].encode()
    for text in (SECRET.encode(), b"one two", key, key[-20:], b"made-up", b"hidden"):
        assert text not in sent


def test_trace_collector_that_is_down_is_counted_and_holds_nothing_up(
    server: Served, collector: TraceCollector, client: httpx.Client
) -> None:
    before = dropped(client)
    collector.status = 400
    try:
        began = time.monotonic()
        assert chat(client).status_code == 200
        assert time.monotonic() - began < 5
        tracer = server.services.tracer
        assert isinstance(tracer, Tracer)

        def counted() -> bool:
            tracer.flush()
            return dropped(client) > before

        eventually(counted)
    finally:
        collector.status = 200
    traced(server, collector, chat(client))


def dropped(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = next(each for each in lines if each.startswith("bitinglip_spans_dropped_total"))
    return float(found.split()[1])
