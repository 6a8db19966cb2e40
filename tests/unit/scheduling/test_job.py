"""The ids of jobs: unique, sorted by time, of one length."""

from concurrent.futures import ThreadPoolExecutor

from bitinglip.scheduling.job import new_task_id


def test_task_ids_are_unique_in_many_threads_and_of_one_length() -> None:
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda _: new_task_id(), range(5000)))
    assert len({each[-20:] for each in ids}) == len(ids)
    assert {len(each) for each in ids} == {37}
    first, last = new_task_id(), new_task_id()
    assert first[:17] <= last[:17]
