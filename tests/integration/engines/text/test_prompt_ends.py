"""Ends of prompts and answers: BOS once, turns that continue, all end tokens."""

from pathlib import Path
from typing import NoReturn

import pytest
from tokenizers import processors

from tests.support.models.chat_tokenizers import BARE, CHATML, MISTRAL, chat_tokenizer
from tests.support.models.text import BOS, EOS, make_tiny_model, train_tokenizer, write_script
from tests.support.text_harness import load, run
from workers.engines.base import Refused
from workers.engines.text.chat_templates import chat_templates
from workers.engines.text.conversation import Conversation
from workers.engines.text.grammar.compiler import GrammarCompiler
from workers.engines.text.preprocess import Preprocessor
from workers.protocol import ChatMessage, Sampling, TextJob

_FEW = Sampling(max_tokens=4)


def preprocessor(template: str | None) -> Preprocessor:
    """Prepare for a tokenizer that puts BOS before a text, as Llama's do."""
    tokenizer = chat_tokenizer("byte-level", template)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    chat = Conversation(chat_templates(tokenizer, Path("none")), tokenizer, "", None)
    grammars = GrammarCompiler(_no_vocabulary)
    return Preprocessor(tokenizer, chat, max_context=500, vocab_size=500, grammars=grammars)


def _no_vocabulary() -> NoReturn:
    raise AssertionError("no grammar is asked for")


def begins(prepared: Preprocessor, job: TextJob) -> int:
    """Count how often the prompt of a job begins with BOS."""
    bos = prepared._tokenizer.bos_token_id
    [prompt] = prepared.prepare(job).prompts
    return next(number for number, token in enumerate(prompt.ids) if token != bos)


@pytest.mark.parametrize(("template", "once"), [(MISTRAL, 1), (CHATML, 0)])
def test_bos_of_a_chat_is_the_template_s_to_write(template: str, once: int) -> None:
    chat = TextJob(id="a", messages=(ChatMessage("user", "hi"),), sampling=_FEW)
    assert begins(preprocessor(template), chat) == once


def test_bos_of_a_prompt_is_added_once_and_left_out_if_asked() -> None:
    prepared = preprocessor(BARE)
    for text in ("hi", "<s>hi"):
        assert begins(prepared, TextJob(id="a", prompt=text, sampling=_FEW)) == 1
    plain = TextJob(id="a", prompt="hi", sampling=_FEW, special_tokens=False)
    assert begins(prepared, plain) == 0


def test_chat_without_a_template_is_refused_with_what_works() -> None:
    chat = TextJob(id="a", messages=(ChatMessage("user", "hi"),), sampling=_FEW)
    with pytest.raises(Refused, match=r"no chat template.*/v1/completions"):
        preprocessor(None).prepare(chat)


def test_end_of_a_turn_ends_an_answer_though_no_file_names_it(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}" + BOS.replace("begin", "turn_ends")
    tokenizer = train_tokenizer(template + "{% endfor %}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn_ends|>"]})
    make_tiny_model("llama", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|turn_ends|>")
    assert end != tokenizer.convert_tokens_to_ids(EOS)
    word, again = (tokenizer.convert_tokens_to_ids(each) for each in ("a", "b"))
    write_script(tmp_path, word, [again, end, tokenizer.convert_tokens_to_ids("c")])
    engine, _ = load(tmp_path)
    said = run(engine, TextJob(id="a", prompt="a", sampling=Sampling(max_tokens=9)))["a"]
    assert (said.text, said.choices[0].finish_reason) == ("b", "stop")
    engine.close()
