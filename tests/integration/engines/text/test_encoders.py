"""Models whose encoder reads the prompt, in the text engine, against the library's generate()."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.support.engine_runs import finals, run_to_end, submit
from tests.support.models.seq2seq import (
    FAMILIES,
    make_m2m100,
    make_marian,
    make_seq2seq_model,
    make_translator,
)
from tests.support.models.text import EOS, make_tiny_model
from tests.support.text_harness import done, job, load, note_preempted, run
from workers.engines.base import Answered, Refused
from workers.engines.text import rounding
from workers.protocol import (
    Cancelled,
    ChatMessage,
    Grammar,
    Sampling,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
)

PROMPTS = [
    "Translate this: the prompt is longer than the others, and an encoder reads all of it.",
    "one two three",
    "T",
]


class Library:
    """Says what the library's generate() says, greedy."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None

    def translation(self, prompt: str, count: int, languages: tuple[str, str]) -> str:
        self._tokenizer.src_lang, into = languages
        settings = self._model.generation_config
        settings.forced_bos_token_id = self._tokenizer.convert_tokens_to_ids(into)
        return self.answer(prompt, count)

    def answer(self, prompt: str, count: int) -> str:
        ids = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        forced = self._model.generation_config.forced_bos_token_id is not None
        output = self._model.generate(ids, max_new_tokens=count + forced, do_sample=False)
        text: str = self._tokenizer.decode(output[0, 1 + forced :], skip_special_tokens=True)
        return text


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seq2seq_model("t5", tmp_path_factory.mktemp("models") / "t5")


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_text_is_that_of_generate_alone_and_beside_others(
    family: str, tmp_path: Path
) -> None:
    folder = make_seq2seq_model(family, tmp_path / family)
    engine, ready = load(folder)
    assert ready.sequential == "an encoder reads the prompt, and a decoder answers"
    jobs = [job(str(n), prompt, max_tokens=9 + n) for n, prompt in enumerate(PROMPTS)]
    library = Library(folder)
    expected = {str(n): library.answer(each, 9 + n) for n, each in enumerate(PROMPTS)}
    assert len(set(expected.values())) == len(PROMPTS)
    assert run(engine, jobs[0])["0"].text == expected["0"]
    ends = run(engine, *jobs, job("noise", PROMPTS[1], temperature=1.0, seed=3))
    assert {name: end.text for name, end in ends.items() if name in expected} == expected
    engine.close()


def test_encoder_prompt_counts_beside_the_answer_s_context(t5: Path) -> None:
    engine, ready = load(t5, max_context=48, kv_cache_bytes=4 << 20)
    assert ready.max_context == 48
    end = run(engine, job("a", "one " * 10, max_tokens=40))["a"]
    assert (end.prompt_tokens, end.completion_tokens) == (31, 40)
    tokens = msgspec.structs.replace(job("b"), prompt=None, prompts=((9, 8, 7, 1), (9, 8, 7, 1)))
    both = run(engine, tokens)["b"]
    assert both.prompt_tokens == 8
    assert both.choices[0].text == both.choices[1].text
    with pytest.raises(Refused) as refused:
        engine.prepare(job("c", "one " * 30))
    assert (refused.value.code, refused.value.param) == ("CONTEXT_LENGTH_EXCEEDED", "prompt")
    with pytest.raises(Refused) as refused:
        engine.prepare(job("d", "one", max_tokens=60))
    assert refused.value.param == "max_tokens"
    with pytest.raises(Answered) as counted:
        engine.prepare(msgspec.structs.replace(job("e", "one"), count_only=True))
    assert isinstance(counted.value.final, TextDone)
    assert counted.value.final.prompt_tokens == run(engine, job("f", "one"))["f"].prompt_tokens
    engine.close()


def test_encoder_beyond_the_limits_of_rounding_is_refused_only_where_these_were_tried(
    t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were tried on a CPU, without experts, as the limits of all other texts."""
    monkeypatch.setattr(rounding.Rounding, "allows", lambda *_, **__: False)
    with pytest.raises(Refused, match="as its library does"):
        load(t5, dtype="bfloat16")
    monkeypatch.setattr(rounding, "_has_experts", lambda _model: True)
    engine, _ = load(t5, dtype="bfloat16")
    engine.close()


def test_encoder_text_streams_stops_and_tells_its_logprobs(t5: Path) -> None:
    engine, _ = load(t5)
    plain = run(engine, job("a", PROMPTS[0], logprobs=2, seed=7, temperature=1.0))["a"]
    again = run_to_end(engine, job("a", PROMPTS[0], logprobs=2, seed=7, temperature=1.0))
    pieces = [event.text for event in again if isinstance(event, TextDelta)]
    assert "".join(pieces) == plain.text
    assert len(plain.choices[0].logprobs) == 12
    assert all(each.logprob is not None for each in plain.choices[0].logprobs)
    stop = plain.text[4:6]
    ended = run(engine, job("a", PROMPTS[0], seed=7, temperature=1.0, stop=(stop,)))["a"]
    assert ended.text == plain.text[: plain.text.index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    several = msgspec.structs.replace(job("a", PROMPTS[0], seed=7, temperature=1.0), n=2)
    first, second = run(engine, several)["a"].choices
    assert (first.text, second.finish_reason) == (plain.text, "length")
    engine.close()


@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_encoder_text_is_the_same_after_its_row_was_another_s(tmp_path: Path, family: str) -> None:
    """A row has room for its longest answer: what gives way is a job's second row, to begin again
    from its prompt."""
    engine, _ = load(make_seq2seq_model(family, tmp_path / family), max_batch=3)
    many = job("many", PROMPTS[0], temperature=1.0, seed=5)
    many = msgspec.structs.replace(many, n=3, priority=1)
    others = [job(str(n), prompt, max_tokens=9) for n, prompt in enumerate(PROMPTS)]
    expected = {one.id: run(engine, one)[one.id].choices for one in (many, *others)}
    preempted = note_preempted(engine)
    submit(engine, many)
    events = [event for _ in range(4) for event in engine.step()]
    found = done(events + run_to_end(engine, *others))
    assert set(preempted) == {"many"}
    assert {name: end.choices for name, end in found.items()} == expected
    engine.close()


def test_encoder_job_is_cancelled_beside_others(t5: Path) -> None:
    engine, _ = load(t5)
    keep, gone = job("keep", PROMPTS[0], max_tokens=30), job("gone", PROMPTS[1], max_tokens=60)
    expected = run(engine, keep)["keep"].text
    for one in (keep, gone):
        engine.submit(engine.prepare(one))
    events = [event for _ in range(5) for event in engine.step()]
    engine.cancel("gone")
    events += run_to_end(engine)
    cancelled = finals(events)["gone"]
    assert isinstance(cancelled, Cancelled)
    assert cancelled.completion_tokens <= 6
    assert done(events)["keep"].text == expected
    engine.close()


def test_encoder_model_takes_no_echo_and_no_chat_without_a_template(t5: Path) -> None:
    engine, _ = load(t5)
    with pytest.raises(Refused) as refused:
        engine.prepare(msgspec.structs.replace(job("a"), echo=True))
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", "echo")
    chat = TextJob(id="a", messages=(ChatMessage("user", "hi"),), sampling=Sampling(max_tokens=4))
    with pytest.raises(Refused) as refused:
        engine.prepare(chat)
    assert "no chat template" in refused.value.message
    engine.close()


def test_encoder_never_says_what_its_files_forbid(t5: Path) -> None:
    engine, _ = load(t5)
    one = job("a", PROMPTS[0], logit_bias={3: 100.0}, logprobs=0)
    assert 3 not in [each.id for each in run(engine, one)["a"].choices[0].logprobs]
    engine.close()


def test_encoder_translates_between_the_languages_of_the_settings(tmp_path: Path, t5: Path) -> None:
    folder = make_translator(tmp_path / "model")
    library, texts = Library(folder), []
    for languages in (("fr_XX", "de_DE"), ("fr_XX", "ro_RO"), ("en_XX", "ro_RO")):
        options = TextOptions(source_language=languages[0], target_language=languages[1])
        engine, _ = load(folder, text=options)
        texts.append(run(engine, job("a", "hello there", max_tokens=8))["a"].text)
        assert texts[-1] == library.translation("hello there", 8, languages)
        engine.close()
    assert len(set(texts)) == 3
    for options in (
        TextOptions(source_language="xx_YY"),
        TextOptions(target_language="klingon"),
    ):
        with pytest.raises(Refused) as refused:
            load(folder, text=options)
        assert "has no token" in refused.value.message
    with pytest.raises(Refused) as refused:
        load(t5, text=TextOptions(source_language=EOS))
    assert "marks no languages" in refused.value.message


def test_encoder_prompt_in_pieces_of_sentencepiece_is_translated_as_by_generate(
    tmp_path: Path,
) -> None:
    """Marian's tokenizer numbers the pieces of two files by a third, and is one in Python."""
    folder = make_marian(tmp_path / "model")
    engine, _ = load(folder)
    texts = [*PROMPTS, ">>de<< the keys and values  of a dict", "\N{SNOWMAN} </s> >>de<< t"]
    jobs = [job(str(n), prompt, max_tokens=9 + n) for n, prompt in enumerate(texts)]
    library = Library(folder)
    expected = {str(n): library.answer(each, 9 + n) for n, each in enumerate(texts)}
    assert len(set(expected.values())) == len(texts)
    assert all(expected.values())
    assert {name: end.text for name, end in run(engine, *jobs).items()} == expected
    events = run_to_end(engine, jobs[0])
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == expected["0"]
    one = job("a", texts[0], ignore_eos=False, max_tokens=40)
    form = Grammar(kind="regex", source="[a-m ]{3,9}")
    said = run(engine, msgspec.structs.replace(one, grammar=form))["a"].text
    assert re.fullmatch("[a-m ]{3,9}", said)
    engine.close()
    with pytest.raises(Refused) as refused:
        load(folder, text=TextOptions(target_language=">>de<<"))
    assert "is told it in the prompt, which begins with '>>de<<'" in refused.value.message


def test_encoder_translates_by_codes_that_are_no_tokens(tmp_path: Path) -> None:
    folder = make_m2m100(tmp_path / "model")
    library, texts = Library(folder), []
    for languages in (("fr", "de"), ("en", "ro")):
        options = TextOptions(source_language=languages[0], target_language=languages[1])
        engine, _ = load(folder, text=options)
        texts.append(run(engine, job("a", "return the keys", max_tokens=8))["a"].text)
        named = (languages[0], f"__{languages[1]}__")
        assert texts[-1] == library.translation("return the keys", 8, named)
        engine.close()
    assert len(set(texts)) == 2
    with pytest.raises(Refused) as refused:
        load(folder, text=TextOptions(source_language="klingon"))
    assert "has no token" in refused.value.message


def test_tokenizer_in_python_is_not_for_chats(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    translator = make_m2m100(tmp_path / "translator")
    for name in ("vocab.json", "sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(translator / name, folder)
    with pytest.raises(Refused) as refused:
        load(folder)
    assert "in Python, which only encoders may have" in refused.value.message


def test_languages_are_not_for_models_without_an_encoder(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    with pytest.raises(Refused) as refused:
        load(folder, text=TextOptions(target_language="de_DE"))
    assert "text.target_language" in refused.value.message
