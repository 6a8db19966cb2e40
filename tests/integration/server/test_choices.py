"""Choices and several prompts in one request, by OpenAI's clients."""

from typing import Any

from tests.support.http_client import NATIVE
from tests.support.server import Server
from tests.support.sse import STREAM_END, events_of


def post(server: Server, path: str, **body: Any) -> Any:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_chat_of_two_choices_streams_both_to_their_ends(server: Server) -> None:
    body: dict[str, Any] = {
        "model": "demo-text",
        "messages": [{"role": "user", "content": "one"}],
        "max_tokens": 6,
        "min_tokens": 6,
        "temperature": 2,
        "seed": 5,
        "n": 2,
    }
    whole = post(server, "/v1/chat/completions", **body).json()
    texts = [each["message"]["content"] for each in whole["choices"]]
    assert [each["index"] for each in whole["choices"]] == [0, 1]
    assert texts[0] != texts[1]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(post(server, "/v1/chat/completions", **body, **options).text)
    assert events.pop() == STREAM_END
    usage = events.pop()[1]["usage"]
    assert usage == whole["usage"]
    assert usage["completion_tokens"] <= 2 * 6
    streamed, ended = ["", ""], []
    for _, chunk in events:
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content") or ""
        if choice["finish_reason"]:
            ended.append(choice["index"])
    assert (streamed, ended) == (texts, [0, 1])
    alone = post(server, "/v1/chat/completions", **{**body, "n": 1}).json()
    assert alone["choices"][0]["message"]["content"] == texts[0]


def test_completions_of_prompts_echo_them_with_their_scores(server: Server) -> None:
    body: dict[str, Any] = {
        "model": "demo-text",
        "max_tokens": 2,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    prompts = ["one two", "three"]
    several = post(server, "/v1/completions", **body, prompt=prompts, n=2).json()
    assert [each["index"] for each in several["choices"]] == [0, 1, 2, 3]
    assert several["choices"][0]["text"] == several["choices"][1]["text"]
    for choice, prompt in zip(several["choices"][::2], prompts, strict=True):
        assert choice["text"].startswith(prompt)
        scores = choice["logprobs"]
        assert scores["token_logprobs"][0] is None
        assert all(-9999 <= each <= 0 for each in scores["token_logprobs"][1:])
        alone = post(server, "/v1/completions", **body, prompt=prompt).json()["choices"][0]
        assert (alone["text"], alone["logprobs"]["tokens"]) == (choice["text"], scores["tokens"])
    nothing = post(server, "/v1/completions", **{**body, "max_tokens": 0}, prompt=[[5, 6], [7]])
    for choice, count in zip(nothing.json()["choices"], (2, 1), strict=True):
        assert len(choice["logprobs"]["tokens"]) == count
    assert nothing.json()["usage"]["completion_tokens"] == 0


def test_native_choices_have_their_index_in_streams_and_answers(server: Server) -> None:
    body = {"model": "demo-echo", "prompt": "a b", "max_tokens": 2, "n": 2, "stream": True}
    events = events_of(post(server, NATIVE, **body).text)
    tokens = [data for name, data in events if name == "token"]
    assert {data["choice"] for data in tokens} == {0, 1}
    result = events[-1][1]["result"]
    assert [each["text"] for each in result["choices"]] == ["a b", "a b"]
    assert events[-1][1]["usage"]["completion_tokens"] == 4
