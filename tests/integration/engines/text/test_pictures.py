"""Models that read pictures, in the text engine, against the library's own generate()."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from model_store.chat_templates import WITHOUT_TURNS
from model_store.inspection import inspect
from tests.support.models.text import BOS, make_tiny_model
from tests.support.models.vision import FAMILIES, library_processor, make_vision_model, png
from tests.support.text_harness import job, load, run
from workers.engines.base import Answered, Refused
from workers.engines.text import chat_templates
from workers.protocol import ChatMessage, Picture, Sampling, TextDone, TextJob

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


class Library:
    """Says what the library's generate() says, greedy, by its own processor and template."""

    def __init__(self, family: str, folder: Path) -> None:
        self._processor = library_processor(family, folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        # PaliGemma's processor gives its tokenizer tokens for which this model has no row.
        self._own = AutoTokenizer.from_pretrained(folder)
        self._needs_pictures = family == "paligemma"
        self._model.eval().generation_config.eos_token_id = None

    def answer(self, messages: Sequence[ChatMessage], count: int) -> str:
        told = [{"role": each.role, "content": _content(each)} for each in messages]
        tokenizer = self._processor.tokenizer
        prompt = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
        images = [
            Image.open(io.BytesIO(Path(picture.source).read_bytes())).convert("RGB")
            for each in messages
            for picture in each.pictures
        ]
        if images or not self._needs_pictures:
            inputs = self._processor(images=images or None, text=[prompt], return_tensors="pt")
        else:
            inputs = tokenizer(prompt, return_tensors="pt")
        output = self._model.generate(
            **inputs, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        said = output[0, inputs["input_ids"].shape[1] :]
        shown: str = self._own.decode(said, skip_special_tokens=True)
        return shown


def _content(message: ChatMessage) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.parts()
    ]


# The library's processor of PaliGemma makes an array of a tensor.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
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
    library = Library(family, folder)
    expected = {name: library.answer(messages, 9) for name, messages in chats.items()}
    assert len(set(expected.values())) > 1
    assert run(engine, jobs[0])["one"].text == expected["one"]
    ends = run(engine, *jobs)
    assert {name: end.text for name, end in ends.items()} == expected
    assert ends["two"].prompt_tokens > ends["text"].prompt_tokens
    engine.close()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_picture_for_a_model_without_turns_and_template(tmp_path: Path) -> None:
    """PaliGemma's processor puts BOS behind its pictures, and a line's end behind the text."""
    folder = make_vision_model("paligemma", tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert inspect(folder).capabilities == ("completion", "chat", "vision")
    engine, ready = load(folder)
    assert ready.has_chat_template
    processor = library_processor("paligemma", folder)
    asked = chat("a", seen(tmp_path, TEXT, (5, 1), (5, 2)))
    images = [Image.new("RGB", (40, 40))] * 2
    theirs = processor(images=images, text=[f"<image><image>{TEXT}"])["input_ids"]
    assert engine.prepare(asked).prompts[0].ids == theirs[0]
    plain = engine.prepare(chat("b", ChatMessage("user", "<image> hi"))).prompts[0]
    encoded = AutoTokenizer.from_pretrained(folder)(f"{BOS}{{}}\n")["input_ids"]
    assert (plain.ids[0], plain.ids[-1]) == (encoded[0], encoded[-1])
    assert processor.image_token_id not in plain.ids
    assert run(engine, asked)["a"].completion_tokens == 9
    with pytest.raises(Refused) as refused:
        engine.prepare(msgspec.structs.replace(job("c", "hi", logprobs=1), echo=True))
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", "logprobs")
    engine.close()


def test_picture_models_without_turns_are_the_same_to_the_store() -> None:
    assert set(chat_templates.WITHOUT_TURNS) == WITHOUT_TURNS


@pytest.mark.parametrize(("family", "room"), [("qwen2_5_vl", 220_000), ("paligemma", 160_000)])
def test_picture_prompt_is_computed_again_as_it_was(family: str, room: int, tmp_path: Path) -> None:
    """Jobs that had to give way begin again, with what they said behind their pictures."""
    folder = make_vision_model(family, tmp_path / "model")
    engine, ready = load(folder, kv_cache_bytes=room, max_context=96)
    jobs = [chat(str(n), seen(tmp_path, TEXT, (n, n)), max_tokens=24) for n in range(5)]
    expected = {one.id: run(engine, one)[one.id].text for one in jobs}
    computed: list[int] = []
    inner = engine._loaded.model.model
    tower = inner.visual if family == "qwen2_5_vl" else inner.vision_tower
    tower.register_forward_hook(lambda *_: computed.append(1))
    assert {name: end.text for name, end in run(engine, *jobs).items()} == expected
    assert ready.slots > 1
    assert len(computed) > len(jobs)
    engine.close()


def test_picture_tokens_that_a_client_writes_are_text(llava: Path, tmp_path: Path) -> None:
    engine, _ = load(llava)
    one = engine.prepare(chat("a", seen(tmp_path, TEXT, (0, 1)))).prompts[0]
    typed = engine.prepare(chat("b", seen(tmp_path, TEXT + " <image>", (0, 1)))).prompts[0]
    image = engine._loaded.tokenizer.convert_tokens_to_ids("<image>")
    assert one.ids.count(image) == typed.ids.count(image) == 4
    assert len(typed.ids) > len(one.ids)
    assert engine.prepare(chat("c", ChatMessage("user", "<image>"))).prompts[0].inputs is None
    engine.close()


def test_picture_counts_in_the_tokens_of_a_prompt(llava: Path, tmp_path: Path) -> None:
    engine, _ = load(llava, max_context=64)
    one = chat("a", seen(tmp_path, "hi", (0, 1)))
    with pytest.raises(Answered) as counted:
        engine.prepare(msgspec.structs.replace(one, count_only=True))
    final = counted.value.final
    assert isinstance(final, TextDone)
    assert final.prompt_tokens == run(engine, one)["a"].prompt_tokens
    many = chat("b", seen(tmp_path, "hi", *((0, seed) for seed in range(1, 15))))
    with pytest.raises(Refused) as refused:
        engine.prepare(many)
    assert refused.value.code == "CONTEXT_LENGTH_EXCEEDED"
    engine.close()


def test_picture_that_no_decoder_reads_is_refused_without_its_words(
    llava: Path, tmp_path: Path
) -> None:
    engine, _ = load(llava)
    good = seen(tmp_path, TEXT, (0, 1))
    path = Path(good.pictures[0].source)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(Refused) as refused:
        engine.prepare(chat("a", good))
    assert refused.value.code == "INVALID_REQUEST"
    assert str(tmp_path) not in refused.value.message
    assert "0x" not in refused.value.message
    engine.close()


def test_picture_for_a_template_of_parts_only(llava: Path, tmp_path: Path) -> None:
    """Many templates of such models take no plain text as content."""
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message['role'] }}]{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    engine, _ = load(llava)
    parts, _ = load(folder)
    for message in (ChatMessage("user", TEXT), seen(tmp_path, TEXT, (3, 1))):
        expected = engine.prepare(chat("a", message)).prompts[0].ids
        assert parts.prepare(chat("a", message)).prompts[0].ids == expected
    last = (ChatMessage("user", TEXT), ChatMessage("assistant", "It is"))
    ids = [
        each.prepare(msgspec.structs.replace(chat("a", *last), continue_final=True)).prompts[0].ids
        for each in (engine, parts)
    ]
    assert ids[0] == ids[1]
    engine.close()
    parts.close()


def test_picture_processor_that_does_not_load_refuses_the_model(
    llava: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"}')
    (folder / "processor_config.json").unlink()
    with pytest.raises(Refused) as refused:
        load(folder)
    assert refused.value.code == "MODEL_LOAD_FAILED"
    assert "processor of images" in refused.value.message


def test_picture_for_a_model_of_text_is_refused(tmp_path: Path) -> None:
    engine, _ = load(make_tiny_model("llama", tmp_path / "model"))
    with pytest.raises(Refused) as refused:
        engine.prepare(chat("a", seen(tmp_path, TEXT, (0, 1))))
    assert refused.value.code == "INVALID_REQUEST"
    engine.close()
