"""Output of a worker: what is kept, and what is passed on."""

from workers.output import MOST_CHARACTERS, MOST_LINES, Output


def collected(clock: list[float] | None = None) -> tuple[Output, list[str]]:
    lines: list[str] = []
    now = clock if clock is not None else [0.0]
    return Output(lines.append, lambda: now[0]), lines


def test_output_lines_come_whole_however_they_are_cut() -> None:
    output, lines = collected()
    for piece in (b"one\ntw", b"o\n", b"\n", b"thr\xc3", b"\xa9e"):
        output.feed(piece)
    assert lines == ["one", "two"]
    output.end()
    assert lines == ["one", "two", "thrée"]


def test_output_holds_no_terminal_control_characters() -> None:
    output, lines = collected()
    output.feed(b"\x1b[2Jhi\x00\x9b\n\xff\xfe\n 10%\r 20%\r done\r\n")
    assert lines == ["[2Jhi\ufffd", "\ufffd\ufffd", " done"]


def test_output_keeps_its_end_only() -> None:
    output, _ = collected()
    for number in range(1000):
        output.feed(b"%d\n" % number)
    assert output.tail == [str(number) for number in range(1000 - MOST_LINES, 1000)]
    output.feed(b"x" * 1_000_000 + b"\n")
    assert output.tail[-1] == "x" * MOST_CHARACTERS


def test_output_flood_is_cut_and_says_so() -> None:
    now = [10.0]
    output, lines = collected(now)
    output.feed(b"".join(b"%d\n" % number for number in range(250)))
    assert len(lines) == 100
    now[0] += 1
    output.feed(b"later\n")
    assert lines[100:] == ["... 150 lines left out", "later"]
