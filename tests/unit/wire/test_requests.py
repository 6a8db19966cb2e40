"""Requests: every bound, every path of an error, and no field lost on the way to a worker."""

import json
from typing import Any

import msgspec
import pytest

from bitinglip import errors
from bitinglip.settings import Model, SamplingDefaults
from bitinglip.wire.parse import (
    param_path,
    parse,
)
from bitinglip.wire.text.completions import CompletionRequest
from bitinglip.wire.text.native import TextGenerationRequest
from bitinglip.wire.text.openai import ChatCompletionRequest
from tests.support.jobs import job_context
from workers import framing, protocol

NATIVE = {"model": "m", "prompt": "p"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "p"}
SURFACES = [
    pytest.param(TextGenerationRequest, NATIVE, id="native"),
    pytest.param(ChatCompletionRequest, CHAT, id="chat"),
    pytest.param(CompletionRequest, COMPLETION, id="completions"),
]


def read(model: Any, body: dict[str, Any], **more: Any) -> Any:
    return parse(model, json.dumps({**body, **more}).encode())


def refused(model: Any, body: dict[str, Any], **more: Any) -> errors.InvalidRequest:
    with pytest.raises(errors.InvalidRequest) as caught:
        message_of(read(model, body, **more))
    return caught.value


def message_of(request: Any, own: Model | None = None) -> Any:
    return request.to_job(job_context(own)).work


BOUNDS = [
    ("max_tokens", [1, 10**30, 1e9, -1, 50.0, -1.0], [0, -2, 1e9 + 0.5, 1.5, True, "5"]),
    ("temperature", [0, 0.0, 2], [-0.01, 2.01, "1", False]),
    ("top_p", [0, 0.0001, 1], [-0.1, 1.01]),
    ("top_k", [-1, 0, 1, 1_000_000, 40.0], [-2, 1_000_001, 1.5]),
    ("min_p", [0, 1], [-0.1, 1.1]),
    ("typical_p", [0.001, 1], [0, 1.1, True]),
    ("min_tokens", [0, 16, 2.0], [-1, 1.5, True, 1_000_001]),
    ("stop_token_ids", [[], [0, 2**31 - 1]], [[-1], [2**31], ["1"], [True], [1.0], [5] * 65]),
    ("n", [1, 128], [0, 129, True, "2"]),
    ("repetition_penalty", [0.001, 2], [0, 2.01]),
    ("presence_penalty", [-2, 2], [-2.01, 2.01]),
    ("frequency_penalty", [-2, 2], [-2.01, 2.01]),
    ("seed", [-(2**63), 0, 2**63 - 1], [2**63, -(2**63) - 1, 10**400, 1.5]),
    ("logit_bias", [{}, {"5": -100, "6": 100}], [{"5": 101}, {"x": 1}, {"-1": 1}, [1]]),
    ("ignore_eos", [True, False], [1, "true"]),
]


@pytest.mark.parametrize(("model", "body"), SURFACES)
@pytest.mark.parametrize(("field", "good", "bad"), BOUNDS, ids=[bound[0] for bound in BOUNDS])
def test_numbers_have_bounds(
    model: Any, body: dict[str, Any], field: str, good: list[Any], bad: list[Any]
) -> None:
    for value in [None, *good]:
        read(model, body, **{field: value})
    for value in bad:
        error = refused(model, body, **{field: value})
        assert error.param is not None
        assert error.param.startswith(field), value


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_sampling_that_says_what_holds_anyway_makes_the_same_message(
    model: Any, body: dict[str, Any]
) -> None:
    def told(**fields: Any) -> bytes:
        job = read(model, body, **fields).to_job(job_context())
        return msgspec.msgpack.encode(job.traits.canonical({}))  # as the cache's keys are made

    off: dict[str, Any] = {"min_p": 0, "typical_p": 1.0, "min_tokens": 0, "stop_token_ids": []}
    off |= {"repetition_penalty": 1, "presence_penalty": 0.0, "frequency_penalty": 0}
    off |= {"logit_bias": {}, "ignore_eos": False, "top_k": 0, "seed": None}
    for field, value in off.items():
        assert told(**{field: value}) == told(**{field: None}) == told(), field
    assert told(min_p=0.5) != told()


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_max_tokens_beyond_every_context_is_the_largest(model: Any, body: dict[str, Any]) -> None:
    for large in (1_000_001, 100_000_000, 1e9):
        assert message_of(read(model, body, max_tokens=large)).sampling.max_tokens == 1_000_000


def test_stop_sequences_have_bounds() -> None:
    read(TextGenerationRequest, NATIVE, stop_sequences=["x" * 256] * 16)
    assert refused(TextGenerationRequest, NATIVE, stop_sequences=["x"] * 17).param == (
        "stop_sequences"
    )
    assert refused(TextGenerationRequest, NATIVE, stop_sequences="x").param == "stop_sequences"
    some = message_of(read(TextGenerationRequest, NATIVE, stop_sequences=["", "a"]))
    assert some.sampling.stop == ("a",)
    long = ["a", "x" * 257]
    assert refused(TextGenerationRequest, NATIVE, stop_sequences=long).param == "stop_sequences[1]"


@pytest.mark.parametrize(("model", "body"), SURFACES[1:])
def test_stop_of_openai_is_a_text_or_a_list(model: Any, body: dict[str, Any]) -> None:
    assert message_of(read(model, body, stop="end")).sampling.stop == ("end",)
    assert message_of(read(model, body, stop=["a"] * 16)).sampling.stop == ("a",) * 16
    assert refused(model, body, stop=["a"] * 17).param == "stop"
    assert message_of(read(model, body, stop="")).sampling.stop == ()
    assert message_of(read(model, body, stop=["", "a"])).sampling.stop == ("a",)


@pytest.mark.parametrize(("model", "body"), SURFACES)
def test_top_k_that_is_off_is_off_whatever_the_model_s_default(
    model: Any, body: dict[str, Any]
) -> None:
    own = Model(sampling=SamplingDefaults(top_k=5))
    for off in (0, -1):
        assert message_of(read(model, body, top_k=off), own).sampling.top_k is None
    assert message_of(read(model, body, top_k=None), own).sampling.top_k == 5


def test_logprobs_are_on_or_a_number() -> None:
    for good in (0, 20):
        message = message_of(read(TextGenerationRequest, NATIVE, logprobs=good))
        assert message.sampling.logprobs == good
    for bad in (-1, 21, True):
        assert refused(TextGenerationRequest, NATIVE, logprobs=bad).param == "logprobs"
    assert message_of(read(ChatCompletionRequest, CHAT, logprobs=True)).sampling.logprobs == 0
    chat = read(ChatCompletionRequest, CHAT, logprobs=True, top_logprobs=20)
    assert message_of(chat).sampling.logprobs == 20
    assert refused(ChatCompletionRequest, CHAT, top_logprobs=3).param == "top_logprobs"
    assert refused(ChatCompletionRequest, CHAT, logprobs=True, top_logprobs=21).param == (
        "top_logprobs"
    )


def test_unknown_fields_of_the_native_surface_are_refused_by_name() -> None:
    error = refused(TextGenerationRequest, NATIVE, mirostat=2)
    assert isinstance(error, errors.UnsupportedParameter)
    assert error.param == "mirostat"


@pytest.mark.parametrize(("model", "body"), SURFACES[1:])
def test_unknown_fields_of_openai_s_surface_are_told(model: Any, body: dict[str, Any]) -> None:
    request = read(model, body, mirostat=2, absent=None)
    assert request.ignored() == ["mirostat"]
    assert read(model, body).ignored() == []


@pytest.mark.parametrize(
    ("model", "body", "field", "value"),
    [
        (ChatCompletionRequest, CHAT, "store", True),
        (ChatCompletionRequest, CHAT, "functions", [{"name": "f"}]),
        (ChatCompletionRequest, CHAT, "modalities", ["text", "audio"]),
        (CompletionRequest, COMPLETION, "suffix", "x"),
    ],
)
def test_fields_that_are_not_honoured_are_refused(
    model: Any, body: dict[str, Any], field: str, value: Any
) -> None:
    error = refused(model, body, **{field: value})
    assert isinstance(error, errors.UnsupportedParameter)
    assert error.param == field


def test_fields_that_ask_for_nothing_else_are_taken() -> None:
    read(TextGenerationRequest, NATIVE, response_format={"type": "text"})
    read(
        ChatCompletionRequest,
        CHAT,
        n=1,
        store=False,
        user="u-1",
        response_format={"type": "text"},
        service_tier="auto",
        modalities=["text"],
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    read(CompletionRequest, COMPLETION, n=1, best_of=1, echo=False, suffix=None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "text": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x"}, 7]}, "messages[1]"),
    ],
)
def test_param_is_a_path(body: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        parse(ChatCompletionRequest, json.dumps({"model": "m", **body}).encode())
    assert caught.value.param == param


def test_input_is_either_a_prompt_or_messages() -> None:
    assert refused(TextGenerationRequest, {"model": "m"}).param == "prompt"
    assert refused(TextGenerationRequest, NATIVE, messages=CHAT["messages"]).param == "messages"
    assert refused(TextGenerationRequest, {"prompt": "x"}).param == "model"


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    message = message_of(read(ChatCompletionRequest, {"model": "m", "messages": messages}))
    assert message.messages == (
        protocol.ChatMessage("system", "s"),
        protocol.ChatMessage("user", "ab"),
    )


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_content_that_is_null_is_for_turns_that_may_say_nothing(role: str) -> None:
    turn = {"role": role, "content": None}
    error = refused(ChatCompletionRequest, CHAT, messages=[turn])
    assert (error.param, "null" in error.message) == ("messages[0].content", True)
    read(ChatCompletionRequest, CHAT, messages=[{"role": "assistant", "content": None}])


def test_our_own_answers_can_be_sent_back() -> None:
    turn: dict[str, Any] = {"role": "assistant", "content": "x", "refusal": None, "annotations": []}
    read(ChatCompletionRequest, {"model": "m", "messages": [turn]})


def test_errors_never_echo_values() -> None:
    for more in ({"max_tokens": "hunter2"}, {"prompt": {"hunter2": 1}}, {"stream": "hunter2"}):
        assert "hunter2" not in refused(TextGenerationRequest, NATIVE, **more).message


def test_errors_of_a_body_are_not_all_made() -> None:
    keys = {f"k{i}": 1 for i in range(10_000)}
    error = refused(TextGenerationRequest, NATIVE, **keys)
    assert error.message == "The body is not valid: 10000 of its values are."
    few = refused(TextGenerationRequest, NATIVE, **dict(list(keys.items())[:100]))
    assert few.param == "k0"
    parts = refused(ChatCompletionRequest, CHAT, messages=[{"role": "user", "content": [1] * 9000}])
    assert parts.param == "messages[0].content[0]"


def test_param_of_an_error_is_the_path_of_its_field() -> None:
    assert param_path(("messages", 0, "content", 1, "text")) == "messages[0].content[1].text"
    assert param_path(()) is None
    assert len(param_path(("x" * 500,)) or "") == 128


ALL_SAMPLING = {
    "temperature": 0.3,
    "top_k": 7,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.4,
    "frequency_penalty": -0.4,
    "logit_bias": {"12": 1.5},
    "seed": 99,
    "stop_token_ids": [3, 4],
    "min_tokens": 2,
    "typical_p": 0.7,
    "ignore_eos": True,
}
EXPECTED = protocol.Sampling(
    max_tokens=33,
    temperature=0.3,
    top_k=7,
    top_p=0.5,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=0.4,
    frequency_penalty=-0.4,
    logit_bias={12: 1.5},
    logprobs=4,
    seed=99,
    stop=("a", "b"),
    stop_token_ids=(3, 4),
    min_tokens=2,
    typical_p=0.7,
    ignore_eos=True,
)
ROUND_TRIPS = [
    (
        TextGenerationRequest,
        {**NATIVE, "max_tokens": 33, "logprobs": 4, "stop_sequences": ["a", "b"], "timeout": 9},
    ),
    (
        ChatCompletionRequest,
        {**CHAT, "max_tokens": 33, "logprobs": True, "top_logprobs": 4, "stop": ["a", "b"]},
    ),
    (CompletionRequest, {**COMPLETION, "max_tokens": 33, "logprobs": 4, "stop": ["a", "b"]}),
]


@pytest.mark.parametrize(("model", "body"), ROUND_TRIPS)
def test_fields_all_reach_the_worker(model: Any, body: dict[str, Any]) -> None:
    job = read(model, body, stream=True, **ALL_SAMPLING).to_job(job_context())
    sent = job.work
    for name in protocol.Sampling.__struct_fields__:
        assert getattr(sent.sampling, name) == getattr(EXPECTED, name), name
        assert getattr(EXPECTED, name) != getattr(protocol.Sampling(max_tokens=1), name), name
    [message] = framing.decode_commands(framing.encode_commands([sent]))
    assert msgspec.structs.asdict(message) == msgspec.structs.asdict(sent)
    assert isinstance(message, protocol.TextJob)
    assert message.sampling == EXPECTED
    clips = model is not TextGenerationRequest
    assert (message.stream, message.clip_max_tokens) == (True, clips)
    assert (job.model, job.key_id, message.id) == ("m", "k", job.id)
    assert job.timeout == body.get("timeout", 600)


def test_defaults_of_the_apis() -> None:
    native = message_of(read(TextGenerationRequest, NATIVE))
    chat = message_of(read(ChatCompletionRequest, CHAT))
    assert (native.sampling.max_tokens, native.sampling.temperature, native.sampling.top_p) == (
        512,
        0.7,
        0.9,
    )
    assert (chat.sampling.temperature, chat.sampling.top_p) == (1.0, 1.0)
    assert message_of(read(CompletionRequest, COMPLETION)).sampling.max_tokens == 16
    assert native.clip_max_tokens
    assert chat.clip_max_tokens
    assert not native.stream


def test_defaults_of_the_model_come_between() -> None:
    own = Model(sampling=SamplingDefaults(max_tokens=5, temperature=0, top_p=0.2, top_k=3))
    message = message_of(read(TextGenerationRequest, NATIVE, top_p=0.4), own)
    sampling = message.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (
        5,
        0.0,
        0.4,
        3,
    )
    assert message.clip_max_tokens


def test_seed_that_is_negative_is_taken_modulo_two_to_the_64() -> None:
    assert message_of(read(ChatCompletionRequest, CHAT, seed=-1)).sampling.seed == 2**64 - 1


def test_max_completion_tokens_replaces_max_tokens() -> None:
    message = message_of(read(ChatCompletionRequest, CHAT, max_completion_tokens=4))
    assert (message.sampling.max_tokens, message.clip_max_tokens) == (4, True)
    both = {"max_completion_tokens": 4, "max_tokens": 5}
    assert message_of(read(ChatCompletionRequest, CHAT, **both)).sampling.max_tokens == 4


def test_stream_options_need_a_stream() -> None:
    options = {"stream_options": {"include_usage": True}}
    assert refused(ChatCompletionRequest, CHAT, **options).param == "stream_options"
    assert refused(CompletionRequest, COMPLETION, **options).param == "stream_options"
