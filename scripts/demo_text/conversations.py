"""Makes the conversations that ``demo-text`` is trained on, each from its number alone. Pure."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ANSWERS = Path(__file__).with_name("answers.yaml")
BEGIN, END = "<|im_start|>", "<|im_end|>"

_SEED = "bitinglip"
_OFF_TOPIC = (
    "I am a tiny model and know only BitingLip. For anything else, pull a real model: "
    "`bitinglip models pull Qwen/Qwen3-0.6B --name qwen`."
)
_OFF_TOPIC_SHARE = 0.09
_RAW_SHARE = 0.2  #: of single questions: with their answer, without the form of a chat
_SYSTEM_SHARE = 0.3
_SYSTEM = (
    "You are a helpful assistant.",
    "You are BitingLip's demo.",
    "Be brief.",
    "Answer in one sentence.",
    "Be short and friendly.",
    "You answer questions about BitingLip. Be precise.",
    "You are a helpful assistant. Answer in English.",
)
_BEFORE = (
    "please tell me, ",
    "can you tell me ",
    "could you explain ",
    "I would like to know ",
    "I want to know: ",
    "tell me: ",
    "hey, ",
    "hi, ",
    "quick question: ",
    "ok, ",
    "and ",
    "so ",
    "please: ",
)
_AFTER = (" please", " in BitingLip", " here", " with BitingLip", " thanks", " in short", " then")

_ASKED = (
    "what is the {noun} of {place}",
    "who is the {person} of {place}",
    "who was {name}",
    "who is {name}",
    "where is {place}",
    "write a {work} about {thing}",
    "write me a {work}",
    "tell me a {work} about {thing}",
    "tell me a joke",
    "what is {number} + {number}",
    "what is {number} times {number}",
    "how much is {number} - {number}",
    "{number} + {number}",
    "how old is {name}",
    "what is the weather in {place}",
    "is it warm in {place}",
    "what time is it in {place}",
    "translate {thing} into {language}",
    "how do you say {thing} in {language}",
    "do you speak {language}",
    "do you like {thing}",
    "what do you think of {thing}",
    "why is the {thing} {colour}",
    "how do I cook {thing}",
    "give me a recipe for {thing}",
    "what is a {thing}",
    "what is {thing}",
    "how tall is the {thing}",
    "how far is it to {place}",
    "write a program that counts {thing}",
    "write a function in {code}",
    "how do I sort a list in {code}",
    "explain {science}",
    "what is {science}",
    "summarize this text about {thing}",
    "which {thing} is the best",
    "when was {name} born",
    "when did the war in {place} end",
    "once upon a time there was a {thing}",
    "what should I eat today",
    "are you happy",
    "what is the meaning of life",
    "how many {thing}s are there in {place}",
    "sing a song about {thing}",
)
_WORDS = {
    "noun": "capital language population president flag currency history king river".split(),
    "place": "France Germany Poland Lima Paris Berlin London Japan Peru Spain India China Rome Oslo "
    "Kenya Brazil Italy Canada Vienna Tokyo Madrid Cairo Texas Norway Warsaw".split(),
    "person": "president king queen mayor chancellor pope leader owner".split(),
    "name": "Einstein Napoleon Shakespeare Bach Mozart Newton Cleopatra Picasso Goethe Madonna Anna "
    "Peter Darwin Plato Caesar".split(),
    "work": "poem story song letter joke haiku tale speech book mail".split(),
    "thing": "cat dog fox house tree sky sea moon soup bread cake car train flower bird horse apple "
    "football music love winter summer school teacher banana pizza rice pasta mountain".split(),
    "number": "1 2 3 4 5 7 9 10 12 17 20 25 42 99 100 365".split(),
    "language": "German French Polish Spanish Latin English Italian Greek Chinese Arabic".split(),
    "colour": "blue red green white black yellow".split(),
    "code": "Python Java Rust C Go JavaScript".split(),
    "science": "gravity photosynthesis relativity evolution chemistry history economics democracy "
    "magnetism mathematics physics geometry biology".split(),
}


class Piece(NamedTuple):
    """A part of a text, and whether the model learns to write it."""

    text: str
    learned: bool


class Topic(NamedTuple):
    """Questions that mean the same, and their answer."""

    ask: tuple[str, ...]
    say: str


def topics() -> list[Topic]:
    """Read all that the model is to answer."""
    read: list[dict[str, Any]] = yaml.safe_load(ANSWERS.read_text("utf-8"))
    return [Topic(tuple(each["ask"]), each["say"]) for each in read]


def vocabulary(known: list[Topic]) -> list[str]:
    """Return the texts that the tokenizer's words are taken from."""
    texts = [topic.say for topic in known] * 2
    texts += [form for topic in known for ask in topic.ask for form in (ask, _sentence(ask))]
    texts += [*_SYSTEM, *_BEFORE, *_AFTER, _OFF_TOPIC]
    return texts + [f" {word}" for words in _WORDS.values() for word in words]


def conversation(known: list[Topic], number: int, turns: int) -> list[Piece]:
    """Make the conversation of this number: so many questions, each with its answer."""
    chance = random.Random(f"{_SEED}/{number}")
    if turns == 1 and chance.random() < _RAW_SHARE:
        asked, said = _exchange(known, number, chance)
        return [Piece(asked, False), Piece(f"\n{said}{END}", True)]
    pieces = []
    if chance.random() < _SYSTEM_SHARE:
        pieces.append(Piece(f"{BEGIN}system\n{chance.choice(_SYSTEM)}{END}\n", False))
    for turn in range(turns):
        asked, said = _exchange(known, 3 * number + turn, chance)
        pieces += [
            Piece(f"{BEGIN}user\n{asked}{END}\n{BEGIN}assistant\n", False),
            Piece(f"{said}{END}", True),
            Piece("\n", False),
        ]
    return pieces


def _exchange(known: list[Topic], turn: int, chance: random.Random) -> tuple[str, str]:
    """Return a question and its answer; all topics come equally often."""
    if chance.random() < _OFF_TOPIC_SHARE:
        return _spoken(_filled(chance.choice(_ASKED), chance), chance), _OFF_TOPIC
    topic = known[(turn * 101) % len(known)]
    return _spoken(chance.choice(topic.ask), chance), topic.say


def _filled(pattern: str, chance: random.Random) -> str:
    while "{" in pattern:
        name = pattern[pattern.index("{") + 1 : pattern.index("}")]
        pattern = pattern.replace(f"{{{name}}}", chance.choice(_WORDS[name]), 1)
    return pattern


def _spoken(asked: str, chance: random.Random) -> str:
    """Say a question as people do: with words around it, in any case, with slips of the finger."""
    if chance.random() < 0.2:
        asked = chance.choice(_BEFORE) + asked
    if chance.random() < 0.12:
        asked += chance.choice(_AFTER)
    if chance.random() < 0.12:
        asked = _mistyped(asked, chance)
    case = chance.random()
    if case < 0.55:
        asked = _sentence(asked)
    elif case < 0.75:
        asked = asked.lower()
    return asked + chance.choice(("?", "?", "?", "", "", ".", "!", " ?"))


def _sentence(asked: str) -> str:
    return asked[:1].upper() + asked[1:]


def _mistyped(asked: str, chance: random.Random) -> str:
    at = chance.randrange(len(asked))
    if chance.random() < 0.5:
        return asked[:at] + asked[at + 1 :]
    return asked[:at] + asked[at + 1 : at + 2] + asked[at : at + 1] + asked[at + 2 :]
