"""Files and batches, with the official client; the workers follow a script."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import Served, serve
from tests.support.batch_client import begin, chat_line, ended, line, results, upload
from tests.support.wait import eventually

BATCHES = {"max_lines": 12, "max_open_per_key": 2, "lines_at_once_per_batch": 3}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("batches"), batches=BATCHES) as served:
        yield served


def client_of(served: Served, scope: str = "inference:text") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.keys[scope], max_retries=0)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with client_of(served) as client:
        yield client
    served.wait_idle()


def test_file_is_kept_listed_and_deleted(client: openai.OpenAI) -> None:
    content = b'{"a": 1}\n'
    file = client.files.create(
        file=("lines.jsonl", content),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.filename, file.bytes, file.purpose) == ("lines.jsonl", len(content), "batch")
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 3600) <= 1
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).content == content
    assert file.id in [each.id for each in client.files.list(limit=1, purpose="batch")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_are_listed_in_pages(client: openai.OpenAI) -> None:
    ids = [upload(client, [{}]) for _ in range(3)]
    first = client.files.list(limit=2)
    assert [each.id for each in first.data] == [ids[2], ids[1]]
    assert first.has_more
    assert client.files.list(limit=1, after=ids[1]).data[0].id == ids[0]
    assert [each.id for each in client.files.list(after=ids[0], order="asc")] == ids[1:]


def test_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=b"{}", purpose="fine-tune")
    assert refused.value.param == "purpose"
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=b"", purpose="batch")


def test_files_and_batches_are_hidden_from_other_keys(served: Served) -> None:
    with client_of(served) as client, client_of(served, "admin") as admin:
        batch_id = begin(client, [chat_line("a")])
        file_id = ended(client, batch_id).input_file_id
        mine = upload(admin, [{}])
        assert admin.files.retrieve(file_id).id == file_id
        with pytest.raises(openai.NotFoundError):
            client.files.content(mine)
        with pytest.raises(openai.NotFoundError):
            client.batches.create(
                input_file_id=mine, endpoint="/v1/completions", completion_window="24h"
            )
        assert batch_id in [each.id for each in admin.batches.list()]


def test_batch_ends_each_line_once(client: openai.OpenAI) -> None:
    lines = [chat_line(f"line-{number}", metadata={"a": "b"}) for number in range(10)]
    lines[4] = chat_line("line-4", "!refuse")
    lines[7] = chat_line("line-7", model="absent")
    lines[8] = chat_line("line-8", stream=True)
    batch = ended(client, begin(client, lines, metadata={"name": "night"}))
    assert (batch.status, batch.metadata) == ("completed", {"name": "night"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 7, 3)
    good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
    ids = sorted(each["custom_id"] for each in good + bad)
    assert ids == sorted(each["custom_id"] for each in lines)
    for each in good:
        body = each["response"]["body"]
        assert each["response"]["status_code"] == 200
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == "one two"
    found = {each["custom_id"]: each["response"] for each in bad}
    assert found["line-4"]["body"]["error"]["code"] == "context_length_exceeded"
    assert found["line-7"]["status_code"] == 404
    assert found["line-8"]["body"]["error"]["param"] == "stream"
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.bytes == len(client.files.content(output.id).content)


def test_batch_of_completions(client: openai.OpenAI) -> None:
    asked = line("a", "/v1/completions", {"model": "demo", "prompt": "x"})
    batch = ended(client, begin(client, [asked, b""], endpoint="/v1/completions"))
    (result,) = results(client, batch.output_file_id)
    assert result["response"]["body"]["choices"][0]["text"] == "one two"


def test_batch_of_responses_keeps_them_and_goes_on_with_kept_ones(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="x")
    url = "/v1/responses"
    lines = [
        line("a", url, {"model": "demo", "input": "y", "previous_response_id": first.id}),
        line("b", url, {"model": "demo", "input": "y", "store": False}),
        line("c", url, {"model": "demo", "input": "y", "background": True}),
        line("d", url, {"model": "demo", "input": "y", "previous_response_id": "resp_none"}),
    ]
    batch = ended(client, begin(client, lines, endpoint=url))
    good = {each["custom_id"]: each["response"] for each in results(client, batch.output_file_id)}
    bad = {each["custom_id"]: each["response"] for each in results(client, batch.error_file_id)}
    assert (sorted(good), sorted(bad)) == (["a", "b"], ["c", "d"])
    made = good["a"]["body"]
    assert made["object"] == "response"
    kept = client.responses.retrieve(made["id"])
    assert (kept.previous_response_id, kept.output_text) == (first.id, "one two")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(good["b"]["body"]["id"])
    assert bad["c"]["body"]["error"]["param"] == "background"
    assert bad["d"]["body"]["error"]["param"] == "previous_response_id"


def test_batch_counts_the_tokens_of_its_results(client: openai.OpenAI) -> None:
    batch = ended(
        client, begin(client, [chat_line("a"), chat_line("b"), chat_line("c", "!refuse")])
    )
    told = [each["response"]["body"]["usage"] for each in results(client, batch.output_file_id)]
    assert batch.usage.input_tokens == sum(each["prompt_tokens"] for each in told)
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in told) > 0
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


def test_batch_names_the_fields_of_a_line_that_were_ignored(
    client: openai.OpenAI, served: Served
) -> None:
    def counted() -> float:
        text = httpx.get(f"{served.url}/metrics").text
        found = re.search(r"^bitinglip_ignored_fields_total (\S+)", text, re.M)
        return float(found[1]) if found else 0.0

    before = counted()
    batch = ended(client, begin(client, [chat_line("a", guided=1, frobs=2), chat_line("b")]))
    found = {each["custom_id"]: each["response"] for each in results(client, batch.output_file_id)}
    assert found["a"]["ignored_fields"] == ["guided", "frobs"]
    assert "ignored_fields" not in found["b"]
    assert counted() == before + 1


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([chat_line("a"), b"{nonsense"], "invalid_json_line", 2),
        ([chat_line("a"), chat_line("b"), chat_line("a")], "duplicate_custom_id", 3),
        ([line("a", "/v1/embeddings", {})], "mismatched_endpoint", 1),
        ([{"method": "POST"}], "invalid_request", 1),
        ([chat_line("a") | {"method": "GET"}], "invalid_request", 1),
        ([chat_line("a") | {"body": []}], "invalid_request", 1),
        ([b'{"a":' + b"[" * 100_000], "invalid_json_line", 1),
        ([b" ", b" "], "empty_file", None),
        ([chat_line(str(number)) for number in range(13)], "too_many_tasks", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_batch_fails_with_the_number_of_a_wrong_line(
    client: openai.OpenAI, lines: list[Any], code: str, number: int | None
) -> None:
    batch = ended(client, begin(client, lines))
    assert batch.status == "failed"
    assert batch.errors.data[0].code == code
    assert batch.errors.data[0].line == number
    assert batch.output_file_id is None


def test_batch_is_cancelled_with_its_results(client: openai.OpenAI) -> None:
    lines = [chat_line("done"), *(chat_line(str(number), "!wait") for number in range(9))]
    batch_id = begin(client, lines)
    eventually(lambda: client.batches.retrieve(batch_id).output_file_id is not None)
    running = client.batches.retrieve(batch_id)
    assert running.status == "in_progress"
    assert [each["custom_id"] for each in results(client, running.output_file_id)] == ["done"]
    with pytest.raises(openai.ConflictError):
        client.files.delete(running.input_file_id)
    client.batches.cancel(batch_id)
    batch = ended(client, batch_id)
    assert batch.status == "cancelled"
    left = results(client, batch.error_file_id)
    assert {each["custom_id"] for each in left} == {str(number) for number in range(9)}
    assert {each["error"]["code"] for each in left} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch_id)
    assert client.files.delete(running.input_file_id).deleted


def test_batch_expires_with_its_results(client: openai.OpenAI) -> None:
    lines = [chat_line("done"), chat_line("late", "!wait")]
    batch = ended(client, begin(client, lines, completion_window="1s"))
    assert batch.status == "expired"
    assert batch.expired_at is not None
    # A slow machine may be late with both lines: each of them ends once, in one file or the other.
    late = {each["custom_id"]: each["error"] for each in results(client, batch.error_file_id)}
    done = results(client, batch.output_file_id) if batch.output_file_id else []
    assert sorted([*late, *(each["custom_id"] for each in done)]) == ["done", "late"]
    assert late["late"]["code"] == "batch_expired"


def test_batch_is_one_of_a_few_of_its_key(client: openai.OpenAI) -> None:
    ids = [begin(client, [chat_line("a", "!wait")]) for _ in range(2)]
    with pytest.raises(openai.RateLimitError):
        begin(client, [chat_line("a")])
    for each in ids:
        client.batches.cancel(each)
        ended(client, each)
    assert [each.id for each in client.batches.list(limit=2).data] == ids[::-1]
    assert client.batches.list(limit=1, after=ids[1]).data[0].id == ids[0]


def test_batch_runs_few_lines_at_low_priority(client: openai.OpenAI, served: Served) -> None:
    batch_id = begin(client, [chat_line(str(number), "!wait") for number in range(9)])
    eventually(lambda: served.in_flight == 3)
    jobs = [each.event_log.job for each in served.services.dispatcher.delivery.entries.values()]
    assert all(job.priority.batch for job in jobs)
    client.batches.cancel(batch_id)
    assert ended(client, batch_id).status == "cancelled"


def test_batch_of_a_narrowed_key_has_its_models_only(served: Served) -> None:
    asked = {"name": "x", "scopes": ["inference:text"], "models": ["org/*"]}
    with httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin:
        key = admin.post("/api/v1/keys", json=asked).json()["key"]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        lines = [chat_line("not mine"), chat_line("mine", model="org/deep")]
        batch = ended(client, begin(client, lines))
        [good], [bad] = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert (good["custom_id"], bad["custom_id"]) == ("mine", "not mine")
    assert bad["response"]["status_code"] == 403
    assert bad["response"]["body"]["error"]["code"] == "model_not_allowed"


def test_batch_of_a_revoked_key_ends(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin:
        made = admin.post("/api/v1/keys", json={"name": "x", "scopes": ["inference:text"]}).json()
        key = made["key"]
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
            batch_id = begin(client, [chat_line(str(number), "!wait") for number in range(5)])
            eventually(lambda: served.in_flight == 3)
        assert admin.delete(f"/api/v1/keys/{made['id']}").is_success
    with client_of(served, "admin") as owner:
        batch = ended(owner, batch_id)
    assert (batch.status, batch.request_counts.failed) == ("cancelled", 5)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"input_file_id": 1}, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, None),
    ],
    ids=str,
)
def test_batch_request_is_checked(
    served: Served, changed: dict[str, Any], param: str | None
) -> None:
    asked = {
        "input_file_id": "file-x",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    headers = served.headers("inference:text")
    answer = httpx.post(f"{served.url}/v1/batches", json={**asked, **changed}, headers=headers)
    assert answer.status_code == 400, answer.text
    assert param in (None, answer.json()["error"]["param"])
    for path in ("/v1/batches?limit=0", "/v1/files?limit=x", "/v1/files?order=up"):
        assert httpx.get(served.url + path, headers=headers).status_code == 400
    assert httpx.get(f"{served.url}/v1/batches/none", headers=headers).status_code == 404
    assert json.loads(answer.text)["error"]["type"] == "invalid_request_error"
