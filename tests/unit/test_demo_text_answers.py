"""Answers of demo-text: the commands, settings and error codes in them exist."""

import re
import shlex

import pytest

from bitinglip.errors import TABLE
from bitinglip.settings_loader import dotted, every_setting
from scripts.demo_text.conversations import conversation, topics
from tests.support.doc_examples import ROOT, check_command

TOPICS = topics()
CODES = {each.code for each in TABLE.values()}
SETTINGS = {dotted(path) for path, _ in every_setting()}
SECTIONS = {each.partition(".")[0] for each in SETTINGS}
VARIABLES = {  # of the environment, of other programs too
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
    "BITINGLIP_HOME",
    "BITINGLIP_SERVER__PORT",
    "HF_TOKEN",
    "HTTPS_PROXY",
}
CODE = re.compile(r"`([^`]+)`")


def spans(pattern: str) -> list[str]:
    """Return what the answers hold in code marks and what begins so."""
    every = [span for topic in TOPICS for span in CODE.findall(topic.say)]
    return sorted({each for each in every if re.match(pattern, each)})


@pytest.mark.parametrize("command", spans(r"bitinglip \w"))
def test_answers_name_commands_that_there_are(command: str) -> None:
    words = shlex.split(command)[1:]
    if words != ["models", "pull"] and not command.endswith((" list", " serve")):
        check_command(words)


@pytest.mark.parametrize("span", spans(r"[a-z_]+\.[a-z_<]"))
def test_answers_name_settings_that_there_are(span: str) -> None:
    name = re.split("[:=]", span)[0]
    if name.partition(".")[0] in SECTIONS and "/" not in name:
        assert name in SETTINGS or any(each.startswith(f"{name}.") for each in SETTINGS), name


def test_answers_name_files_and_codes_that_there_are() -> None:
    said = " ".join(topic.say for topic in TOPICS)
    for path in re.findall(r"\b(?:docs|deploy|benchmarks)/[\w./-]+\w|\b[A-Z]+\.md", said):
        assert (ROOT / path).exists(), path
    for code in re.findall(r"\b[A-Z]+_[A-Z_]+\b", said):
        assert code in CODES | VARIABLES, code


def test_conversations_are_the_same_each_time_and_hold_every_answer() -> None:
    texts = ["".join(piece.text for piece in conversation(TOPICS, n, 2)) for n in range(2000)]
    assert texts[7] == "".join(piece.text for piece in conversation(TOPICS, 7, 2))
    missing = [topic.say for topic in TOPICS if not any(topic.say in text for text in texts)]
    assert missing == []
