"""The jobs of an engine by id, and which of them are to be cancelled."""

from workers.engines.job_table import JobTable
from workers.protocol import Cancelled, Event


def test_cancel_ends_a_job_of_the_table_once() -> None:
    table: JobTable[str] = JobTable()
    table["a"], table["b"] = "first", "second"

    def end(request: str) -> Event:
        (job_id,) = [key for key, value in table.items() if value == request]
        del table[job_id]
        return Cancelled(id=job_id)

    for job_id in ("b", "b", "unknown"):
        table.cancel(job_id)
    assert table.end_cancelled(end) == [Cancelled(id="b")]
    assert dict(table) == {"a": "first"}
    assert table.end_cancelled(end) == []


def test_cancel_of_a_job_that_has_ended_since_does_nothing() -> None:
    table: JobTable[str] = JobTable()
    table["a"] = "first"
    table.cancel("a")
    del table["a"]
    assert table.end_cancelled(lambda _: Cancelled(id="a")) == []
