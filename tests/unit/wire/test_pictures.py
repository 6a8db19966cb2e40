"""Pictures in messages: their places among the texts, on each surface and behind the guard."""

import json
from typing import Any

from pydantic import TypeAdapter

from bitinglip.wire.anthropic.blocks import AnthropicMessage, chat_messages
from bitinglip.wire.responses.items import Input, shown_items
from bitinglip.wire.responses.items import chat_messages as of_items
from bitinglip.wire.responses.kept import kept_input
from bitinglip.wire.text.openai import OpenAIMessage
from bitinglip.work import traits_of
from bitinglip.work.text_inputs import with_sources
from workers.protocol import ChatMessage, Picture, Sampling, TextJob

URL = "data:image/png;base64,AAAA"
PARTS = ["look: ", Picture(URL, 6), " and ", Picture(URL, 11), Picture(URL, 11), "?"]


def job(*messages: ChatMessage) -> TextJob:
    return TextJob(id="a", messages=messages, sampling=Sampling(max_tokens=4))


def openai(*parts: str | None) -> ChatMessage:
    """Return a user's message of texts, and of pictures where None stands."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
        if part is None
        else {"type": "text", "text": part}
        for part in parts
    ]
    message = {"role": "user", "content": content}
    return OpenAIMessage.model_validate_json(json.dumps(message)).to_job()


def test_pictures_stand_between_the_texts_that_they_were_sent_between() -> None:
    message = openai("look: ", None, " and ", None, None, "?")
    assert message.content == "look:  and ?"
    assert message.parts() == PARTS


def test_pictures_of_user_turns_in_a_row_keep_their_places() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    image = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image, {"type": "text"} | {
        "text": "seen"}]}  # fmt: skip
    turns = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
        {"role": "user", "content": [image, {"type": "text", "text": "b"}, result, image]},
    ]
    told = [AnthropicMessage.model_validate_json(json.dumps(each)) for each in turns]
    user, tool, last = chat_messages([], told)
    assert user.parts() == ["first\n\na", Picture(URL, 8), "\n\n", Picture(URL, 10), "b"]
    assert tool.parts() == [Picture(URL, 0), "seen"]
    assert (last.role, last.parts()) == ("user", [Picture(URL, 0)])


def test_pictures_keep_their_places_where_the_guard_changes_the_texts() -> None:
    work = job(openai("my card 4111 and ", None, " that"))
    assert traits_of(work).texts() == {
        "messages[0].content[0]": "my card 4111 and ",
        "messages[0].content[2]": " that",
    }
    changed = traits_of(work).with_texts({"messages[0].content[0]": "my card and "})
    assert isinstance(changed, TextJob)
    (message,) = changed.messages or ()
    assert message.parts() == ["my card and ", Picture(URL, 12), " that"]


def test_pictures_are_kept_with_a_response_as_they_were_sent() -> None:
    """The job that runs names files, which are gone by then."""
    sent = [{"role": "user", "content": [{"type": "input_text", "text": "card 4111"}, {
        "type": "input_image", "image_url": URL}]}]  # fmt: skip
    items = shown_items(TypeAdapter(Input).validate_json(json.dumps(sent)), "resp_1")
    asked = job(*of_items(None, items))
    files = job(*with_sources(asked.messages or (), ["/uploads/a-0"]))
    assert kept_input(asked, files, instructed=False, response_id="resp_1") is None
    checked = traits_of(files).with_texts({"messages[0].content[0]": "card"})
    assert isinstance(checked, TextJob)
    (item,) = kept_input(asked, checked, instructed=False, response_id="resp_1") or []
    told = [part.get("text") or part["image_url"] for part in item["content"]]
    assert told == ["card", URL]


def test_pictures_count_in_estimates_and_in_the_identity_of_a_request() -> None:
    def seen(path: str, side: int) -> TextJob:
        return job(ChatMessage("user", "hi", pictures=(Picture(path, 0, side, side),)))

    plain, small, large = job(ChatMessage("user", "hi")), seen("/a-0", 28), seen("/a-0", 2800)
    costs = [traits_of(each).cost(0) for each in (plain, small, large)]
    assert costs[0] + 500 < costs[1] < costs[2] - 9000
    assert traits_of(small).most_used(0, 256).tokens == 256
    assert traits_of(small).upload_paths() == {"picture_0": "/a-0"}
    assert traits_of(traits_of(small).without_input()).upload_paths() == {"picture_0": "/a-0"}
    assert traits_of(job(openai(None))).upload_paths() == {}
    assert traits_of(seen("DATA:image/png;base64,", 1)).upload_paths() == {}
    same = traits_of(seen("/b-0", 28)).canonical({"picture_0": "digest"})
    assert traits_of(small).canonical({"picture_0": "digest"}) == same
    assert traits_of(small).canonical({"picture_0": "other"}) != same
