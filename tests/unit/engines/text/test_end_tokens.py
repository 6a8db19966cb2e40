"""The token by which a template ends a turn, whatever else the files name."""

from pathlib import Path

import pytest

from tests.support.models.chat_tokenizers import AS_JSON, BARE, CHATML, MISTRAL, chat_tokenizer
from workers.engines.text.chat_templates import chat_templates
from workers.engines.text.conversation import Conversation

#: as gpt-oss's: a turn that is over ends otherwise than one that was said before
HARMONY = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}"
    "{{ '[/INST]' if loop.last else '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML, ["<|im_end|>"]),
        (MISTRAL, ["</s>"]),
        (HARMONY, ["[/INST]"]),
        ("{% for m in messages %}{{ m.content }} \n </s>{% endfor %}", ["</s>"]),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", []),
        ("{% for m in messages %}{{ m.content }}.</s>{% endfor %}", []),
        ("{% for m in messages %}{{ m.content }}<s>{% endfor %}", []),
        ("{% for m in messages %}{{ m.content }}<think>{% endfor %}", []),
        ("{{ raise_exception('no') }}", []),
        ("{% for %}", []),
        (AS_JSON, []),
        (BARE, []),
        (None, []),
    ],
)
def test_end_tokens_are_told_by_the_template(template: str | None, ends: list[str]) -> None:
    tokenizer = chat_tokenizer("byte-level", template)
    chat = Conversation(chat_templates(tokenizer, Path("none")), tokenizer, "", None)
    assert tokenizer.convert_ids_to_tokens(sorted(chat.turn_ends)) == ends
