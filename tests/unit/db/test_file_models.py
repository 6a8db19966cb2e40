import sqlite3
from contextlib import closing
from pathlib import Path

from bitinglip.db.migrations.upgrade import upgrade

_MOMENT = "2026-01-01 00:00:00"


def test_migration_finds_the_models_of_files_by_their_tasks(tmp_path: Path) -> None:
    """A file whose task is gone has none: keys that are narrowed may not fetch it."""
    file = tmp_path / "bitinglip.db"
    upgrade(file, "0007")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "INSERT INTO tasks (id, key_id, kind, model, state, bytes, created_at) "
            "VALUES ('known', 'k', 'image', 'painter', 'completed', 1, ?)",
            (_MOMENT,),
        )
        for task in ("known", "gone"):
            connection.execute(
                "INSERT INTO files (id, task_id, key_id, kind, media_type, bytes, created_at) "
                "VALUES (?, ?, 'k', 'image', 'image/png', 1, ?)",
                (f"{task}-0.png", task, _MOMENT),
            )
        connection.commit()
    upgrade(file)
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT id, model FROM files ORDER BY id").fetchall()
    assert found == [("gone-0.png", ""), ("known-0.png", "painter")]
