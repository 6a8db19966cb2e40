"""Makes the conversations that ``demo-text`` is trained on, each from its number alone. Pure."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ANSWERS = Path(__file__).with_name("answers.yaml")
PHRASES = Path(__file__).with_name("phrases.yaml")
BEGIN, END = "<|im_start|>", "<|im_end|>"

_SEED = "bitinglip"
_OFF_TOPIC_SHARE = 0.08
_RAW_SHARE = 0.2  #: of single questions: with their answer, without the form of a chat
_SYSTEM_SHARE = 0.3
_phrases: dict[str, Any] = yaml.safe_load(PHRASES.read_text("utf-8"))
_VERBS = frozenset(_phrases["verbs"].split())
_QUESTIONS = frozenset(_phrases["questions"].split())
_OFF_TOPIC: dict[str, Any] = _phrases["off_topic"]
_OFF_TOPIC_WORDS = {name: words.split() for name, words in _OFF_TOPIC["words"].items()}


class Piece(NamedTuple):
    """Is a part of a text, and whether the model learns to write it."""

    text: str
    learned: bool


class Topic(NamedTuple):
    """Questions that mean the same, and their answer."""

    ask: tuple[str, ...]
    say: str
    weight: int  #: how often it comes, beside others
    talk: bool  #: nobody says it with words around it


def topics() -> list[Topic]:
    """Read all that the model is to answer."""
    read: list[dict[str, Any]] = yaml.safe_load(ANSWERS.read_text("utf-8"))
    return [
        Topic(tuple(each["ask"]), each["say"], each.get("weight", 1), each.get("talk", False))
        for each in read
    ]


def vocabulary(known: list[Topic]) -> list[str]:
    """Return the texts that the tokenizer's words are taken from."""
    texts = [topic.say for topic in known] * 2
    texts += [form for topic in known for ask in topic.ask for form in (ask, _sentence(ask))]
    for name in ("system", "before", "after", "about", "how"):
        texts += _phrases[name]
    texts.append(_OFF_TOPIC["say"])
    return texts + [f" {word}" for words in _OFF_TOPIC_WORDS.values() for word in words]


def conversation(known: list[Topic], number: int, turns: int) -> list[Piece]:
    """Make the conversation of this number: so many questions, each with its answer."""
    chance = random.Random(f"{_SEED}/{number}")
    if turns == 1 and chance.random() < _RAW_SHARE:
        asked, said = _exchange(known, chance)
        return [Piece(asked, False), Piece(f"\n{said}{END}", True)]
    pieces = []
    if chance.random() < _SYSTEM_SHARE:
        pieces.append(Piece(f"{BEGIN}system\n{chance.choice(_phrases['system'])}{END}\n", False))
    for _ in range(turns):
        asked, said = _exchange(known, chance)
        pieces += [
            Piece(f"{BEGIN}user\n{asked}{END}\n{BEGIN}assistant\n", False),
            Piece(f"{said}{END}", True),
            Piece("\n", False),
        ]
    return pieces


def _exchange(known: list[Topic], chance: random.Random) -> tuple[str, str]:
    """Return a question and its answer."""
    if chance.random() < _OFF_TOPIC_SHARE:
        asked = _filled(chance.choice(_OFF_TOPIC["ask"]), chance)
        return _spoken(asked, chance), _OFF_TOPIC["say"]
    [topic] = chance.choices(known, [each.weight for each in known])
    asked = chance.choice(topic.ask)
    if topic.talk:
        return _marked(asked, chance, ("", "", "!", ".")), topic.say
    return _spoken(_phrased(asked, chance), chance), topic.say


def _phrased(asked: str, chance: random.Random) -> str:
    """Make a whole question of a few words, or leave them as they are."""
    first = asked.split()[0]
    if first in _QUESTIONS or chance.random() < 0.4:
        return asked
    before: str = chance.choice(_phrases["how" if first in _VERBS else "about"])
    return before + asked


def _filled(pattern: str, chance: random.Random) -> str:
    while "{" in pattern:
        name = pattern[pattern.index("{") + 1 : pattern.index("}")]
        pattern = pattern.replace(f"{{{name}}}", chance.choice(_OFF_TOPIC_WORDS[name]), 1)
    return pattern


def _spoken(asked: str, chance: random.Random) -> str:
    """Say a question as people do: with words around it, in any case, with slips of the finger."""
    if chance.random() < 0.2:
        asked = chance.choice(_phrases["before"]) + asked
    if chance.random() < 0.12:
        asked += chance.choice(_phrases["after"])
    if chance.random() < 0.12:
        asked = _mistyped(asked, chance)
    return _marked(asked, chance, ("?", "?", "?", "", "", ".", "!", " ?"))


def _marked(asked: str, chance: random.Random, marks: Sequence[str]) -> str:
    """Write it large or small, and with a mark at its end, or without one."""
    case = chance.random()
    if case < 0.55:
        asked = _sentence(asked)
    elif case < 0.75:
        asked = asked.lower()
    return asked + chance.choice(marks)


def _sentence(asked: str) -> str:
    return asked[:1].upper() + asked[1:]


def _mistyped(asked: str, chance: random.Random) -> str:
    at = chance.randrange(len(asked))
    if chance.random() < 0.5:
        return asked[:at] + asked[at + 1 :]
    return asked[:at] + asked[at + 1 : at + 2] + asked[at : at + 1] + asked[at + 2 :]
