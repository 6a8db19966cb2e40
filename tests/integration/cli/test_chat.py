"""``bitinglip chat`` on a terminal."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_process import run, terminal
from tests.support.stub_api import Stub, stub_api


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with stub_api(tmp_path / "home") as running:
        yield running


def test_chat_keeps_its_turns_and_obeys_its_commands(stub: Stub) -> None:
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for("/exit leaves")
        chat.wait_for(">>> ")
        chat.type("one\n")
        chat.wait_for("Hello, world")
        chat.wait_for(r"3 tokens, 6\.0 tokens/s")
        chat.wait_for(">>> ")
        chat.type("/system Be kind.\n")
        chat.wait_for("Noted")
        chat.type("/etc/passwd, what is it?\n")
        chat.wait_for("tokens/s")
        chat.type("/clear\n")
        chat.wait_for("Forgotten")
        chat.type("/wat\n")
        chat.wait_for("no /wat; /help lists the commands")
        chat.type("/?\n")
        chat.wait_for(r"\r\n/model NAME +go on with another model")
        chat.type("last\n")
        chat.wait_for("tokens/s")
        chat.wait_for(">>> ")
        chat.type("/exit\n")
        assert chat.wait_for_end() == 0
    kind = {"role": "system", "content": "Be kind."}
    one = {"role": "user", "content": "one"}
    answer = {"role": "assistant", "content": "Hello, world"}
    question = {"role": "user", "content": "/etc/passwd, what is it?"}
    assert [body["messages"] for body in stub.bodies()] == [
        [one],
        [kind, one, answer, question],
        [kind, {"role": "user", "content": "last"}],
    ]


def test_chat_shows_markdown_asks_again_and_changes_its_model(stub: Stub) -> None:
    stub.pieces = ["# He", "ad\n\nis **bo", "ld**\n"]
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for(">>> ")
        chat.type("one\n")
        chat.wait_for("tokens/s")
        chat.wait_for(">>> ")
        assert "bold" in chat.shown
        chat.type("/plain\n")
        chat.wait_for("As they are")
        chat.type("/retry\n")
        chat.wait_for(r"# Head\s+is \*\*bold\*\*")
        chat.wait_for(">>> ")
        chat.type("/model org/painter\n")
        chat.wait_for("cannot chat")
        chat.type("/model\n")
        chat.wait_for(r"Talking to demo-text\.\x1b")
        chat.type("/model demo-text\n")
        chat.wait_for(r"Talking to demo-text\.\x1b")
        chat.type("two\n")
        chat.wait_for("tokens/s")
        chat.wait_for(">>> ")
        stub.failure = {"code": "OVERLOADED", "message": "Too much to do."}
        chat.type("three\n")
        chat.wait_for("Too much to do")
        chat.wait_for(">>> ")
        stub.failure = None
        chat.type("/retry\n")
        chat.wait_for("tokens/s")
    one = {"role": "user", "content": "one"}
    asked = [(body["model"], body["messages"]) for body in stub.bodies()]
    assert asked[:2] == [("demo-text", [one])] * 2
    assert asked[2][0] == "demo-text"
    assert asked[2][1][0] == one
    assert asked[3] == asked[4]
    assert [turn["content"] for turn in asked[4][1] if turn["role"] == "user"] == [
        "one",
        "two",
        "three",
    ]


def test_interrupt_cancels_the_answer_then_clears_the_line_then_leaves(stub: Stub) -> None:
    stub.pieces, stub.pause = ["word "] * 200, 0.05
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for(">>> ")
        chat.type("go on\n")
        chat.wait_for("loading demo-text, 50%")
        chat.wait_for("word word")
        chat.interrupt()
        chat.wait_for("Cancelled")
        chat.wait_for(">>> ")
        assert stub.cancelled.wait(60)
        stub.pieces = ["done"]
        chat.type("again\n")
        chat.wait_for("done")
        chat.wait_for(">>> ")
        chat.type("half a line")
        chat.wait_for("half a line")
        chat.interrupt_until("line is cleared")
        chat.wait_for(">>> ")
        chat.type("whole\n")
        chat.wait_for("done")
        for told in ("Ctrl-C again", "\r\n"):
            chat.wait_for(">>> ")
            chat.interrupt_until(told)
        assert chat.wait_for_end() == 0
    assert [body["messages"][-1]["content"] for body in stub.bodies()][1:] == ["again", "whole"]
    kept = stub.bodies()[1]["messages"]
    assert [turn["role"] for turn in kept] == ["user", "assistant", "user"]
    assert kept[1]["content"].startswith("word word")


def test_prompt_of_several_lines_is_pasted_or_fenced(stub: Stub) -> None:
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for(">>> ")
        chat.type("\x1b[200~def f():\n    return 1\n\nwhat is it?\x1b[201~\n")
        chat.wait_for("tokens/s")
        chat.wait_for(">>> ")
        chat.type('"""one\n')
        chat.wait_for(r"\.\.\. ")
        chat.type('two"""\n')
        chat.wait_for("tokens/s")
    asked = [body["messages"][-1]["content"] for body in stub.bodies()]
    assert asked == ["def f():\n    return 1\n\nwhat is it?", "one\ntwo"]


def test_chat_turn_that_failed_is_dropped_and_the_session_continues(stub: Stub) -> None:
    stub.failure = {"code": "CONTEXT_LENGTH_EXCEEDED", "message": "Too long."}
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for(">>> ")
        chat.type("one\n")
        chat.wait_for("Error: ")
        chat.wait_for("Too long")
        chat.wait_for("/clear forgets")
        chat.wait_for(">>> ")
        stub.failure = None
        chat.type("two\n")
        chat.wait_for("tokens/s")
        chat.wait_for(">>> ")
        chat.type("\x04")
        assert chat.wait_for_end() == 0
    assert stub.bodies()[1]["messages"] == [{"role": "user", "content": "two"}]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("org/painter", "org/painter is a model for images and cannot chat"),
        ("org/base", "bitinglip generate text org/base"),
    ],
)
def test_chat_with_a_model_that_cannot_is_refused_before_the_first_prompt(
    stub: Stub, model: str, told: str
) -> None:
    with terminal(stub.home, "chat", model, COLUMNS="200") as chat:
        chat.wait_for(told)
        assert chat.wait_for_end() == 1
    assert stub.bodies() == []


def test_terminal_is_not_commanded_by_what_the_model_writes(stub: Stub) -> None:
    stub.pieces = ["\x1b", "]0;owned\x07", "[red]text[/red]"]
    with terminal(stub.home, "chat", "demo-text") as chat:
        chat.wait_for(">>> ")
        chat.type("x\n")
        chat.wait_for(r"\]0;owned\[red\]text\[/red\]")
        chat.wait_for(">>> ")
    assert "\x1b]0;" not in chat.shown
    assert "\x07" not in chat.shown


def test_interrupt_ends_generate(stub: Stub) -> None:
    stub.pieces, stub.pause = ["word "] * 200, 0.05
    with terminal(stub.home, "generate", "text", "demo-text", "x") as generate:
        generate.wait_for("word word")
        generate.interrupt()
        assert generate.wait_for_end() == 130
    assert "Traceback" not in generate.shown
    assert stub.cancelled.wait(60)


def test_colour_is_left_out_without_a_terminal(stub: Stub) -> None:
    for arguments in (["status"], ["doctor"], ["chat", "x"]):
        done = run(stub.home, *arguments)
        assert "\x1b" not in done.stdout + done.stderr, arguments
