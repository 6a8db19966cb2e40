"""Implements ``bitinglip chat``: a conversation in the terminal."""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.generate import MaxTokensOption, SeedOption, TemperatureOption, piped_text
from cli.completion import models
from cli.context import CliContext
from cli.errors import Failure, print_errors
from cli.options import ConfigOption, HomeOption
from cli.show.output import clean, print_note

if TYPE_CHECKING:
    from cli.client import Client
    from cli.stream.markdown import MarkdownWriter

_COMMAND = re.compile(r"/([a-z]+|\?)(?:\s+(.*))?", re.DOTALL)
_HELP = """\
/exit          leave, as Ctrl-D does
/clear         forget the conversation
/system TEXT   say how to answer; without a text, as before
/model NAME    go on with another model; without a name, say which one answers
/retry         ask the last question again
/plain         show answers as they are, or as Markdown again
Ctrl-C         cancel an answer, or clear the line
\"""            begin and end a text of several lines; pasted ones need no marks"""
_FENCE = '"""'
_CLEARED = "The line is cleared; Ctrl-D or /exit leaves."
_WORDS = {"image": "images", "embedding": "embeddings"}  #: where a kind's own name reads badly


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name of the model.", autocompletion=models("chat")),
    ],
    system: Annotated[str | None, typer.Option(help="System prompt of the conversation.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Show answers as they are, and not as Markdown.")
    ] = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk to a model. Text piped in is one prompt."""
    from cli.stream.text_stream import given_options

    server = CliContext.of(home, config).need_server()
    options = given_options(max_tokens=max_tokens, temperature=temperature, seed=seed)
    conversation = Conversation(server, {"model": model, **options}, system)
    conversation.plain = plain or not sys.stdout.isatty()
    if sys.stdin.isatty():
        _check_model(server, model)
        Session(conversation, partial(_check_model, server)).run()
    else:
        conversation.ask(piped_text())


def _check_model(server: "Client", model: str) -> None:
    """Report a model that cannot chat before the first prompt, and not after it."""
    from cli.client import path_of

    found = server.get(path_of("models", model))
    if (kind := found["type"]) != "text":
        raise Failure(f"{model} is a model for {_WORDS.get(kind, kind)} and cannot chat")
    if "chat" not in found.get("capabilities", ("chat",)):
        raise Failure(
            f"{model} continues texts and cannot chat, as it has no chat template; use "
            f"`bitinglip generate text {model} PROMPT`, or /v1/completions"
        )


class Conversation:
    """Keeps the messages so far and asks for the next turn."""

    def __init__(self, server: "Client", options: dict[str, Any], system: str | None) -> None:
        self._server = server
        self._options = options
        self._turns: list[dict[str, str]] = []
        self._unanswered: str | None = None  #: the last question, if nothing came of it
        self.system = system
        self.plain = True  #: show answers as they are, and not as Markdown

    @property
    def model(self) -> str:
        return str(self._options["model"])

    @model.setter
    def model(self, name: str) -> None:
        self._options = {**self._options, "model": name}

    def clear(self) -> None:
        self._turns, self._unanswered = [], None

    def take_back(self) -> str | None:
        """Forget the last question with its answer, and return it; None if there is none."""
        if self._unanswered is not None:
            return self._unanswered
        if not self._turns:
            return None
        *self._turns, asked, _ = self._turns
        return asked["content"]

    def ask(self, prompt: str) -> None:
        """Stream one turn to stdout. The history keeps nothing of a failed turn, and what came of a
        cancelled one."""
        from cli.stream.text_stream import stream_answer

        self._unanswered = prompt
        turns = [*self._turns, {"role": "user", "content": prompt}]
        instructions = [{"role": "system", "content": self.system}] if self.system else []
        pieces: list[str] = []
        screen = _Plain() if self.plain else _Set()

        def write(piece: str) -> None:
            pieces.append(piece)
            screen.write(piece)

        try:
            answer = stream_answer(
                self._server, {**self._options, "messages": instructions + turns}, write
            )
        except KeyboardInterrupt:
            if not pieces:
                typer.echo(err=True)  # ends the line of the terminal's ^C
            self._keep(turns, "".join(pieces))
            raise
        finally:
            screen.close()
        self._keep(turns, answer.response["result"]["text"])
        if sys.stderr.isatty():
            print_note(answer.figures())

    def _keep(self, turns: list[dict[str, str]], answer: str) -> None:
        if answer:
            self._turns = [*turns, {"role": "assistant", "content": answer}]
            self._unanswered = None


class _Plain:
    """Prints the pieces of an answer as they are."""

    def __init__(self) -> None:
        self._last = "\n"

    def write(self, piece: str) -> None:
        self._last = piece or self._last
        typer.echo(clean(piece), nl=False)

    def close(self) -> None:
        if not self._last.endswith("\n"):
            typer.echo()


class _Set:
    """Prints the pieces of an answer as Markdown, from the first one on."""

    def __init__(self) -> None:
        self._writer: MarkdownWriter | None = None

    def write(self, piece: str) -> None:
        from cli.show.output import console
        from cli.stream.markdown import MarkdownWriter

        self._writer = self._writer or MarkdownWriter(console())
        self._writer.write(piece)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Session:
    """Reads prompts and commands from the terminal until the user leaves."""

    def __init__(self, conversation: Conversation, check: Callable[[str], None]) -> None:
        """``check`` raises Failure for a model that cannot chat."""
        self._conversation = conversation
        self._check = check

    def run(self) -> None:
        _enable_line_editing()
        print_note(
            f"Talking to {self._conversation.model}. Ctrl-C cancels an answer, /exit leaves, /help "
            "tells more."
        )
        while (prompt := self._next_prompt()) is not None:
            if not prompt.strip():
                continue
            if match := _COMMAND.fullmatch(prompt.strip()):
                if not self._obey(match[1], (match[2] or "").strip()):
                    return
            else:
                self._answer(prompt)

    def _next_prompt(self) -> str | None:
        """Return the next prompt, or None at the end: Ctrl-D, or Ctrl-C twice on an empty line."""
        warned = False
        while True:
            try:
                return _read_prompt()
            except EOFError:
                typer.echo(err=True)
                return None
            except KeyboardInterrupt:
                typer.echo(err=True)
                empty = not _typed()
                if warned and empty:
                    return None
                warned = empty
                print_note("Ctrl-C again, Ctrl-D or /exit leaves." if empty else _CLEARED)

    def _answer(self, prompt: str) -> None:
        try:
            self._conversation.ask(prompt)
        except KeyboardInterrupt:
            print_note("Cancelled.")
        except Failure as failure:
            print_errors([str(failure)])
            if failure.code == "CONTEXT_LENGTH_EXCEEDED":
                print_note("/clear forgets the conversation and so makes room.")

    def _obey(self, command: str, argument: str) -> bool:
        """Run a command; return whether the session goes on."""
        match command:
            case "exit" | "quit" | "bye":
                return False
            case "clear":
                self._conversation.clear()
                print_note("Forgotten.")
            case "system":
                self._conversation.system = argument or None
                print_note("Noted." if argument else "No instructions any more.")
            case "model" if not argument:
                print_note(f"Talking to {self._conversation.model}.")
            case "model":
                self._change_model(argument)
            case "retry":
                if (asked := self._conversation.take_back()) is None:
                    print_note("Nothing was asked yet.")
                else:
                    self._answer(asked)
            case "plain":
                self._conversation.plain = not self._conversation.plain
                print_note("As they are." if self._conversation.plain else "As Markdown.")
            case "help" | "?":
                print_note(_HELP)
            case _:
                print_note(f"There is no /{command}; /help lists the commands.")
        return True

    def _change_model(self, name: str) -> None:
        try:
            self._check(name)
        except Failure as failure:
            print_errors([str(failure)])
        else:
            self._conversation.model = name
            print_note(f"Talking to {name}.")


def _read_prompt() -> str:
    """Return a line, what was pasted, or the lines between two fences.

    Raises EOFError and KeyboardInterrupt.
    """
    text = _read_line(">>> ")
    if not text.lstrip().startswith(_FENCE):
        return text
    text = text.lstrip().removeprefix(_FENCE)
    while not text.rstrip().endswith(_FENCE):
        text += "\n" + _read_line("... ")
    return text.rstrip().removesuffix(_FENCE)


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    typer.echo(prompt, nl=False, err=True)
    return input()


def _typed() -> str:
    """Return what stood in the line that Ctrl-C cleared."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def _enable_line_editing() -> None:
    """Edit lines as a shell does, and take pasted lines as one prompt, where the library can."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")  # Python switches it off
