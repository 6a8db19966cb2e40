"""The contract that every engine keeps with the worker's loop."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bitinglip import errors
from tests.support.cuda_errors import OUT_OF_MEMORY_ERRORS, STICKY_ERRORS
from tests.support.engines import SUBJECTS, Subject, final, is_same
from workers.engines.base import Refused
from workers.engines.registry import ENGINES, make_engine
from workers.protocol import Cancelled, Event, Failed, FakeOptions, Final, Load, Started, Success

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

CODES = {answer.code for answer in errors.TABLE.values()}
NO_MEMORY = OUT_OF_MEMORY_ERRORS["cpu"]
#: of the product: modules of tests that are imported before this one add some of their own
KINDS = sorted(kind for kind, info in ENGINES.items() if info.module.startswith("workers."))
REAL = [kind for kind in KINDS if kind != "fake"]


@pytest.fixture(scope="module", params=KINDS)
def module_subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    subject = SUBJECTS[request.param](tmp_path_factory.mktemp(request.param))
    yield subject
    subject.engine.close()


@pytest.fixture(scope="module")
def expected(module_subject: Subject) -> Any:
    """Provide the outcome of a job that runs undisturbed."""
    return module_subject.output(module_subject.job())


@pytest.fixture
def subject(module_subject: Subject) -> Iterator[Subject]:
    yield module_subject
    module_subject.undo_fallbacks()
    assert module_subject.engine.in_flight == 0
    assert not any(module_subject.engine.books().values()), "something is still held"


def partial(events: list[Event]) -> list[Event]:
    """Return the events between a job's start and its end."""
    return [event for event in events if not isinstance(event, Started | Final)]


def step_to_end(subject: Subject, events: list[Event]) -> None:
    """Add what each step tells, also of those before one that raises."""
    while subject.engine.in_flight:
        events += subject.engine.step()


def test_load_tells_its_progress_and_how_many_jobs_run_at_once(subject: Subject) -> None:
    assert subject.ready.slots >= 1
    assert subject.ready.device == "cpu"
    assert subject.progress == sorted(subject.progress)
    assert subject.progress[-1] == pytest.approx(1.0)


def test_job_starts_tells_of_its_progress_and_ends_once(subject: Subject) -> None:
    job = subject.job()
    events = subject.run(job)
    assert isinstance(events[0], Started)
    assert len([event for event in events if isinstance(event, Started)]) == 1
    assert isinstance(final(events, job), Success)
    assert partial(events)
    assert {getattr(event, "id", None) for event in events} == {job.id}


def test_stream_off_leaves_only_the_final_event(subject: Subject, expected: Any) -> None:
    job = subject.job(stream=False)
    events = subject.run(job)
    assert is_same(subject.read(events, job), expected)
    assert not partial(events)


def test_cancel_ends_a_job_at_the_next_step_and_its_neighbour_goes_on(
    subject: Subject, expected: Any
) -> None:
    cancelled, neighbour = subject.job(), subject.job()
    subject.submit(cancelled, neighbour)
    while not any(isinstance(each, Started) for each in subject.engine.step()):
        pass
    subject.engine.cancel(cancelled.id)
    subject.engine.cancel(cancelled.id)  # twice is once
    events = subject.engine.step()
    assert isinstance(final(events, cancelled), Cancelled)
    rest = subject.run()
    assert not [event for event in rest if getattr(event, "id", None) == cancelled.id]
    assert is_same(subject.read(events + rest, neighbour), expected)


def test_cancel_ends_a_job_that_has_not_begun(subject: Subject) -> None:
    job = subject.job()
    subject.submit(job)
    subject.engine.cancel(job.id)
    assert isinstance(final(subject.engine.step(), job), Cancelled)


def test_cancel_of_an_unknown_job_does_nothing(subject: Subject) -> None:
    subject.engine.cancel("nobody")
    job = subject.job()
    assert isinstance(final(subject.run(job), job), Success)


@pytest.mark.parametrize("error", OUT_OF_MEMORY_ERRORS.values(), ids=list(OUT_OF_MEMORY_ERRORS))
def test_out_of_memory_ends_the_job_by_name_and_the_next_is_right(
    subject: Subject, expected: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        subject.raise_from_model(patch, error)
        job = subject.job()
        failed = final(subject.run(job), job)
    assert isinstance(failed, Failed)
    assert failed.code == "OUT_OF_MEMORY"
    assert is_same(subject.output(subject.job()), expected)


def test_out_of_memory_for_a_moment_ends_or_answers_the_job_and_the_next_is_right(
    subject: Subject, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        subject.raise_from_model(patch, NO_MEMORY)
        job = subject.job()
        events = subject.submit(job)
        while subject.engine.in_flight and not any(isinstance(each, Started) for each in events):
            events += subject.engine.step()
    events += subject.run()
    end = final(events, job)
    assert isinstance(end, Success) or (isinstance(end, Failed) and end.code == "OUT_OF_MEMORY")
    subject.undo_fallbacks()
    assert is_same(subject.output(subject.job()), expected)


@pytest.mark.parametrize("module_subject", REAL, indirect=True)
def test_nan_from_the_model_ends_the_job_and_the_next_is_right(
    subject: Subject, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = subject.job()
    with monkeypatch.context() as patch:
        subject.fill_with_nan(patch)
        failed = final(subject.run(job), job)
    assert isinstance(failed, Failed)
    assert failed.code == "INFERENCE_FAILED"
    assert failed.message.startswith("The model's output is not a number")
    assert is_same(subject.output(subject.job()), expected)


@pytest.mark.parametrize("error", STICKY_ERRORS.values(), ids=list(STICKY_ERRORS))
def test_sticky_error_of_cuda_leaves_the_step_and_no_job_is_answered(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The worker's loop ends the process then; this one's CPU is well, so the engine goes on."""
    with monkeypatch.context() as patch:
        subject.raise_from_model(patch, error)
        jobs = [subject.job(), subject.job()]
        events = subject.submit(*jobs)
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            step_to_end(subject, events)
    assert not [event for event in events if isinstance(event, Final)]
    for job in jobs:
        subject.engine.cancel(job.id)
    subject.run()


def test_refusal_has_a_code_of_the_table_of_errors(subject: Subject) -> None:
    job = subject.job(**subject.refused)
    with pytest.raises(Refused) as refused:
        subject.engine.prepare(job)
    assert refused.value.code in CODES
    assert refused.value.param is not None


def test_load_of_what_is_no_model_is_refused(subject: Subject, tmp_path: Path) -> None:
    fake = FakeOptions(faults=True, load_fault="error")
    spec = Load(model="m", engine=subject.kind, path=str(tmp_path), threads=1, fake=fake)
    with pytest.raises(Refused) as refused:
        make_engine(subject.kind).load(spec, lambda _: None)
    assert refused.value.code == "MODEL_LOAD_FAILED"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("module_subject", REAL, indirect=True)
def test_load_onto_a_card_that_is_not_there_is_refused(subject: Subject) -> None:
    path = subject.folder / "model"
    spec = Load(model="m", engine=subject.kind, path=str(path), threads=1, device="cuda")
    with pytest.raises(Refused, match="sees no CUDA device") as refused:
        make_engine(subject.kind).load(spec, lambda _: None)
    assert refused.value.code == "MODEL_LOAD_FAILED"


def test_memory_of_its_device_is_told_in_bytes_but_on_a_cpu(subject: Subject) -> None:
    held = subject.engine.device_bytes()
    assert held is None or (subject.kind == "fake" and held >= 0)
