"""Models that read pictures, in the text engine, against the library's own generate()."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.support.models.vision import FAMILIES, library_processor, make_vision_model, png
from tests.support.text_harness import load, run
from workers.protocol import ChatMessage, Picture, Sampling, TextJob

TEXT = "What do you see here, and what is it like?"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_model("llava", tmp_path_factory.mktemp("models") / "llava")


def chat(name: str, *messages: ChatMessage, max_tokens: int = 9) -> TextJob:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return TextJob(id=name, messages=messages, sampling=sampling)


def seen(folder: Path, content: str, *pictures: tuple[int, int]) -> ChatMessage:
    """Return a user's message with pictures: for each its place in the content, and its seed."""
    folder.mkdir(exist_ok=True)
    placed = []
    for at, seed in pictures:
        path = folder / f"{seed}.png"
        path.write_bytes(png(seed))
        placed.append(Picture(str(path), at))
    return ChatMessage("user", content, pictures=tuple(placed))


def generate(family: str, folder: Path, messages: Sequence[ChatMessage], count: int) -> str:
    """Return what the library's generate() says, greedy, by its own processor and template."""
    processor = library_processor(family, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    told = [
        {
            "role": each.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in each.parts()
            ],
        }
        for each in messages
    ]
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
    sources = [picture.source for each in messages for picture in each.pictures]
    images = [Image.open(io.BytesIO(Path(each).read_bytes())).convert("RGB") for each in sources]
    inputs = processor(images=images or None, text=[text], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    said = output[0, inputs["input_ids"].shape[1] :]
    shown: str = tokenizer.decode(said, skip_special_tokens=True)
    return shown


@pytest.mark.parametrize("family", FAMILIES)
def test_picture_chat_says_what_generate_says_alone_and_beside_others(
    family: str, tmp_path: Path
) -> None:
    folder = make_vision_model(family, tmp_path / family)
    engine, ready = load(folder, step_tokens=16)
    assert ready.sequential == "it reads pictures"
    chats = {
        "one": (seen(tmp_path, TEXT, (0, 1)),),
        "two": (seen(tmp_path, TEXT, (5, 2), (11, 3)),),
        "text": (ChatMessage("user", TEXT),),
        "later": (
            seen(tmp_path, "This?", (5, 4)),
            ChatMessage("assistant", "A sheep."),
            seen(tmp_path, "And this?", (0, 1)),
        ),
    }
    jobs = [chat(name, *messages) for name, messages in chats.items()]
    expected = {name: generate(family, folder, messages, 9) for name, messages in chats.items()}
    assert len(set(expected.values())) > 1
    assert run(engine, jobs[0])["one"].text == expected["one"]
    ends = run(engine, *jobs)
    assert {name: end.text for name, end in ends.items()} == expected
    assert ends["two"].prompt_tokens > ends["text"].prompt_tokens
    engine.close()
