"""Chat templates of a model's files, and which one a request gets."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.models.chat_tokenizers import chat_tokenizer
from workers.engines.base import Refused
from workers.engines.text.chat_templates import ChatTemplates, chat_templates
from workers.protocol import ChatMessage

HI = (ChatMessage("user", "hi"),)


def saved(folder: Path, **config: object) -> Path:
    """Save a tokenizer without a template, and further keys in its configuration."""
    chat_tokenizer("byte-level", None).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def read(folder: Path) -> ChatTemplates | None:
    return chat_templates(AutoTokenizer.from_pretrained(folder), folder)


def rendered(folder: Path, *, tools: bool = False) -> str:
    templates = read(folder)
    assert templates is not None
    return templates.choose(tools=tools).render(HI, 1000)


def test_template_of_its_own_file_wins_over_the_configuration(tmp_path: Path) -> None:
    saved(tmp_path, chat_template="configured")
    assert rendered(tmp_path) == "configured"
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert rendered(tmp_path) == "of the file"


def test_template_for_tools_is_chosen_by_its_name(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    saved(tmp_path, chat_template=listed)
    assert (rendered(tmp_path), rendered(tmp_path, tools=True)) == ("plain", "tools")


def test_template_for_tools_is_found_beside_the_file_of_the_default(tmp_path: Path) -> None:
    (saved(tmp_path) / "chat_template.jinja").write_text("plain")
    assert rendered(tmp_path, tools=True) == "plain"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert (rendered(tmp_path), rendered(tmp_path, tools=True)) == ("plain", "tools")


@pytest.mark.parametrize("found", ["as JSON", [{"name": "default", "template": "as JSON"}]])
def test_template_in_chat_template_json_is_found(tmp_path: Path, found: object) -> None:
    (saved(tmp_path) / "chat_template.json").write_text(json.dumps({"chat_template": found}))
    assert rendered(tmp_path) == "as JSON"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chat_template": 3}', '{"other": ""}'])
def test_template_json_that_is_invalid_leaves_the_model_without(tmp_path: Path, text: str) -> None:
    (saved(tmp_path) / "chat_template.json").write_text(text)
    assert read(tmp_path) is None


def test_template_without_a_default_is_the_only_one_or_refuses_chats(tmp_path: Path) -> None:
    saved(tmp_path, chat_template=[{"name": "rag", "template": "the only one"}])
    assert rendered(tmp_path) == "the only one"
    two = [{"name": "rag", "template": "a"}, {"name": "sql", "template": "b"}]
    templates = read(saved(tmp_path, chat_template=two))
    assert templates is not None
    assert templates.default is None
    with pytest.raises(Refused, match="there are 'rag', 'sql', and none is the default"):
        templates.choose().render(HI, 1000)


def test_template_for_tools_that_does_not_compile_leaves_the_default(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{% if"}]
    saved(tmp_path, chat_template=listed)
    assert rendered(tmp_path) == "plain"
    with pytest.raises(Refused, match="does not compile"):
        rendered(tmp_path, tools=True)
