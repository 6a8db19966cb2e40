"""The chain of the audit log, in real databases that another program changes."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitinglip.audit.chain import Verdict, verify_file
from bitinglip.audit.entry import SERVER, Action, Actor, Entry, changed
from bitinglip.audit.query import Filter
from bitinglip.db.database import Database
from tests.support import server
from tests.support.audit_log import KEY, entries, using

ROWS = 6
_COLUMNS = "seq, at, actor, actor_name, token, action, target, outcome, address, request_id"
_COLUMNS += ', user_agent, "before", "after", seal'


def write(path: Path) -> None:
    """Make six entries."""
    with using(path) as (run, audit):
        audit.remember(Entry(Action.SERVER_START))
        for name in "abcd":
            actor = Actor("k1", "laptop", address="10.0.0.1", request_id=f"r-{name}")
            audit.remember(Entry(Action.MODEL_LOAD, actor, name, before={"s": 0}, after={"s": 1}))
        audit.remember(Entry(Action.SERVER_STOP))
        run(audit.flush())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes | None:
    """Provide the bytes of a database with six entries; None of one that is no file."""
    path = tmp_path_factory.mktemp("audit") / "bitinglip.db"
    if server.database_of is not None:
        return None
    write(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, written: bytes | None) -> Path:
    """Provide a database with six entries."""
    path = tmp_path / "bitinglip.db"
    if written is None:
        write(path)
    else:
        path.write_bytes(written)
    return path


def change(path: Path, *statements: str) -> Verdict:
    """Let another program change the database, then check it."""

    async def execute() -> None:
        db = await Database.open(path)
        async with db.write() as session:
            for statement in statements:
                await (await session.connection()).exec_driver_sql(statement)
        await db.close()

    asyncio.run(execute())
    with using(path) as (run, audit):
        found: Verdict = run(audit.verify())
    return found


@pytest.mark.sqlite
def test_audit_chain_is_valid_as_written_and_after_a_restart(path: Path) -> None:
    assert verify_file(path, KEY) == Verdict(True, ROWS, None)
    with using(path) as (run, audit):
        run(audit.record(Entry(Action.SERVER_START)))
        assert run(audit.verify()) == Verdict(True, ROWS + 1, None)


def test_audit_chain_of_an_empty_log_is_valid(tmp_path: Path) -> None:
    with using(tmp_path / "bitinglip.db") as (run, audit):
        assert run(audit.verify()) == Verdict(True, 0, None)


@pytest.mark.sqlite  # the types of its columns bind nobody, and its functions are its own
@pytest.mark.parametrize(
    "assignment",
    [
        "at = at + 1",
        "actor = 'k2'",
        "actor_name = ''",
        "token = 'x'",
        "action = 'model.unload'",
        "target = 'z'",
        "outcome = 'CONFLICT'",
        "address = '10.0.0.2'",
        "request_id = NULL",
        "user_agent = x'00'",
        '"before" = NULL',
        '"after" = \'{"s":2}\'',
        "target = CAST(x'ff' AS TEXT)",
        "seal = zeroblob(32)",
        "seal = 'text'",
        "seal = (SELECT seal FROM audit_log WHERE seq = 2)",
    ],
)
def test_audit_chain_names_the_row_with_a_changed_field(path: Path, assignment: str) -> None:
    found = change(
        path,
        "PRAGMA ignore_check_constraints = ON",
        *_without_not_null(),
        f"UPDATE audit_log SET {assignment} WHERE seq = 4",
    )
    assert found[:3] == (False, ROWS, 4)


def _without_not_null() -> list[str]:
    """Statements after which a column takes anything, as in a file that was edited."""
    untyped = _COLUMNS.replace("seq,", "seq INTEGER PRIMARY KEY,")
    return [
        "CREATE TABLE copy AS SELECT * FROM audit_log",
        "DROP TABLE audit_log",
        f"CREATE TABLE audit_log ({untyped})",
        f"INSERT INTO audit_log ({_COLUMNS}) SELECT {_COLUMNS} FROM copy",
    ]


@pytest.mark.parametrize(
    ("statements", "first_bad"),
    [
        (["DELETE FROM audit_log WHERE seq = 3"], 3),
        (["DELETE FROM audit_log WHERE seq = 1"], 1),
        (["DELETE FROM audit_log WHERE seq < 4"], 1),
        (["DELETE FROM audit_log WHERE seq = 6"], 6),
        (["DELETE FROM audit_log WHERE seq > 3"], 4),
        (["DELETE FROM audit_log"], 1),
        # the row is gone and those after it have moved up
        (
            [
                "DELETE FROM audit_log WHERE seq = 3",
                "UPDATE audit_log SET seq = seq - 1 WHERE seq > 3",
            ],
            3,
        ),
        # two rows change places, with their seals and without
        (
            [
                "UPDATE audit_log SET seq = 99 WHERE seq = 3",
                "UPDATE audit_log SET seq = 3 WHERE seq = 4",
                "UPDATE audit_log SET seq = 4 WHERE seq = 99",
            ],
            3,
        ),
        # a copy of a true row at the end, and one in a place that is free
        (
            [
                f"INSERT INTO audit_log SELECT 7, {_COLUMNS[5:]} FROM audit_log WHERE seq = 2",
            ],
            7,
        ),
        ([f"INSERT INTO audit_log SELECT 0, {_COLUMNS[5:]} FROM audit_log WHERE seq = 2"], 1),
    ],
)
def test_audit_chain_names_the_first_row_that_is_missing_swapped_or_forged(
    path: Path, statements: list[str], first_bad: int
) -> None:
    found = change(path, *statements)
    assert (found.valid, found.first_bad) == (False, first_bad)


@pytest.mark.parametrize(
    ("statements", "first_bad"),
    [
        # the end is cut, and the head told so
        (["DELETE FROM audit_log WHERE seq > 4", "UPDATE audit_head SET last = 4"], 5),
        (
            [
                "DELETE FROM audit_log WHERE seq > 4",
                "UPDATE audit_head SET last = 4, seal = (SELECT seal FROM audit_log WHERE seq = 4)",
            ],
            5,
        ),
        # the beginning is cut, as a deletion by age would
        (
            [
                "UPDATE audit_head SET anchor = (SELECT seal FROM audit_log WHERE seq = 2)",
                "UPDATE audit_head SET first = 3",
                "DELETE FROM audit_log WHERE seq < 3",
            ],
            7,
        ),
        (["UPDATE audit_head SET head_seal = anchor"], 7),
        (["UPDATE audit_head SET anchor = head_seal"], 1),
        (["DELETE FROM audit_head"], 7),
        (["DELETE FROM audit_head", "DELETE FROM audit_log WHERE seq > 2"], 3),
    ],
)
def test_audit_chain_whose_ends_were_changed_is_not_valid_and_stays_so(
    path: Path, statements: list[str], first_bad: int
) -> None:
    """Check that later entries do not hide the change."""
    found = change(path, *statements)
    assert (found.valid, found.first_bad) == (False, first_bad)
    with using(path) as (run, audit):
        for _ in range(2):
            run(audit.record(Entry(Action.SERVER_START)))
        found = run(audit.verify())
        assert (found.valid, found.first_bad) == (False, first_bad)


def test_audit_chain_continues_after_a_forged_row_and_reports_it(path: Path) -> None:
    change(path, f"INSERT INTO audit_log SELECT 7, {_COLUMNS[5:]} FROM audit_log WHERE seq = 2")
    with using(path) as (run, audit):
        run(audit.record(Entry(Action.SERVER_START)))
        assert [row["action"] for row in entries(run, audit)][:2] == [
            "server.start",
            "audit.broken",
        ]
        assert run(audit.verify())[:3] == (False, ROWS + 3, 7)


def test_audit_chain_cut_at_the_end_stays_invalid_when_it_goes_on(path: Path) -> None:
    change(path, "DELETE FROM audit_log WHERE seq > 4")
    with using(path) as (run, audit):
        run(audit.record(Entry(Action.SERVER_START)))
        assert run(audit.verify())[:3] == (False, 5, 5)


@pytest.mark.sqlite
def test_audit_chain_needs_the_home_s_secret(path: Path) -> None:
    """The file alone does not suffice to make seals: under another key no row is right."""
    assert verify_file(path, b"other")[:3] == (False, ROWS, 1)


@pytest.mark.sqlite
def test_audit_log_that_was_damaged_can_be_read_all_the_same(path: Path) -> None:
    change(
        path,
        *_without_not_null(),
        "UPDATE audit_log SET at = 'never', \"after\" = '{' WHERE seq = 4",
    )
    with using(path) as (run, audit):
        row = entries(run, audit)[-4]
        assert (row["entry"], row["at"], row["after"]) == (4, "never", "{")


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_head SET anchor = 1000000000000, seal = 1000000000000",
        "UPDATE audit_head SET last = 9223372036854775807",
        "UPDATE audit_head SET last = 'x', first = 'y'",
        "UPDATE audit_log SET seal = 'text', at = 'never' WHERE seq = 6",
        "UPDATE audit_log SET seal = 7, at = 'never' WHERE seq = 1",
    ],
)
@pytest.mark.parametrize("emptied", [False, True])
def test_audit_log_goes_on_whatever_another_program_has_written(
    path: Path, statement: str, emptied: bool, tmp_path: Path
) -> None:
    """Check that keys keep working, and the chain stays invalid."""
    change(path, statement, *(["DELETE FROM audit_log"] if emptied else []))
    with using(path, folder=tmp_path / "audit", max_entries=4) as (run, audit):
        for _ in range(2):
            run(audit.record(Entry(Action.KEY_CREATE)))
            run(audit.flush())
        assert not run(audit.verify()).valid
        assert [row["action"] for row in entries(run, audit)].count("audit.broken") <= 1
        run(audit.prune())
        run(audit.flush())


def test_audit_entry_holds_no_secret_and_no_control_character() -> None:
    key = "blk_live_" + "a" * 12 + "_" + "b" * 49
    hub = "hf_" + "q" * 34
    token = "eyJ" + "h" * 20 + "." + "c" * 20 + ".sIgNaTuRe"
    actor = Actor(key, key, key, key, key, f"agent {key} {token} {hub}\x1b[2J" + "x" * 500)
    columns = Entry(
        Action.KEY_CREATE,
        actor,
        target=f"{key}\n",
        after={"name": key, "deep": [{"x": token}], key: datetime(2026, 1, 1, tzinfo=UTC)},
    ).columns()
    text = repr(columns)
    assert "b" * 10 not in text
    assert "q" * 10 not in text
    assert "sIgNaTuRe" not in text
    assert "\x1b" not in columns["user_agent"]
    assert len(columns["user_agent"]) == 200
    assert columns["target"].isprintable()


def test_audit_entry_is_bounded() -> None:
    columns = Entry(Action.KEY_CREATE, SERVER, "t" * 10_000, after={"n": "x" * 100_000}).columns()
    assert len(columns["target"]) == 256
    assert columns["after"].startswith('{"too_long":100008,"sha256":"')
    assert sum(len(str(value)) for value in columns.values()) < 1000


def test_audit_entry_holds_the_changed_fields_only() -> None:
    assert changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == (
        {"b": 2, "c": None},
        {"b": 3, "c": 4},
    )


def test_audit_check_yields_to_other_threads_and_reads_one_state(tmp_path: Path) -> None:
    """Entries are added all the while a check reads: it sees the log as it was at its start."""

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            checks = [group.create_task(audit.verify()) for _ in range(3)]
            for _ in range(20):
                await audit.record(Entry(Action.SERVER_START))
        assert all(check.result().valid for check in checks)

    with using(tmp_path / "bitinglip.db") as (run, audit):
        for _ in range(300):
            audit.remember(Entry(Action.SERVER_START))
        run(audit.flush())
        run(both())
        assert run(audit.list(Filter(), limit=1))[1] == 320


@pytest.mark.sqlite
def test_audit_log_in_an_older_copy_of_the_database_is_told_from_the_newest(
    path: Path, tmp_path: Path
) -> None:
    """The copy is whole; the head beside it knows of more, and what goes on tells of it."""
    folder = tmp_path / "audit"
    old = path.read_bytes()
    with using(path, folder=folder) as (run, audit):
        for _ in range(3):
            audit.remember(Entry(Action.SERVER_START))
        run(audit.flush())
        assert run(audit.verify()) == Verdict(True, ROWS + 3, None)
    path.write_bytes(old)
    with using(path, folder=folder) as (run, audit):
        assert run(audit.verify())[:3] == (False, ROWS, ROWS + 1)
        run(audit.record(Entry(Action.SERVER_START)))
        assert not run(audit.verify()).valid
        run(audit.flush())
        newest = entries(run, audit)[0]
        assert (newest["action"], newest["before"]) == ("audit.rollback", {"last": ROWS + 3})
        assert run(audit.verify()) == Verdict(True, ROWS + 2, None)
    change(path, "DELETE FROM audit_log", "DELETE FROM audit_head")
    with using(path, folder=folder) as (run, audit):
        assert run(audit.verify())[:3] == (False, 0, 1)


def test_audit_head_beside_the_database_may_be_behind_pruned_or_none_of_ours(
    path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "audit"
    with using(path, folder=folder, max_entries=2) as (run, audit):
        run(audit.record(Entry(Action.SERVER_START)))
        run(audit.flush())
        run(audit.record(Entry(Action.SERVER_START)))  # and killed before the next flush
        assert run(audit.verify()).valid
        for _ in range(4):
            run(audit.record(Entry(Action.SERVER_START)))
        run(audit.prune())  # the row that the head's copy names is gone
        assert run(audit.verify()).valid
        run(audit.flush())
        actions = {row["action"] for row in entries(run, audit)}
        assert actions == {"server.start", "audit.prune"}
        (folder / "head").write_text('{"last": 99, "seal": "00", "file_seal": "00"}')
        assert run(audit.verify()).valid
