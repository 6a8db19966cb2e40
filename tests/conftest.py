"""Starts a real server, which tests share if they leave it as they found it."""

import gc
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.support import httpx_defaults, process_forks, services
from tests.support.logs import CaughtLogs, caught_logs
from tests.support.server import Server, running_server
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.databases import Databases
    from tests.support.postgres import PostgresServer
    from tests.support.redis import RedisServer

#: One CPU thread per process, set before any of them imports torch: tests run in parallel, models
#: are tiny, and threads that wait for each other take longer than the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
#: Without a card, Triton's kernels run in its interpreter. Containers may have the devices without
#: the driver's folder, and WSL has neither.
_CARDS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
if not any(Path(each).exists() for each in _CARDS):
    os.environ.setdefault("TRITON_INTERPRET", "1")
#: A machine that stands still makes an example late and no property false.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
gc.disable()  # until all is imported: nothing of that is ever let go
httpx_defaults.be_patient()
httpx_defaults.read_roots_once()


_DATABASE, _DATABASES = "--database", ("sqlite", "postgresql", "pgbouncer")
_REDIS = "--redis"
_DAY_SECONDS = 86_400
_LONGEST_TEST_SECONDS = 60  #: of those that may not see a day begin


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let long files begin first: one that began last would be waited for.

    The collector need not look again and again through the libraries that are imported by now.
    """
    gc.freeze()
    gc.enable()
    if config.getoption(_DATABASE) != "sqlite":
        _leave_out(config, items, lambda item: item.get_closest_marker("sqlite") is not None)
    if config.getoption(_REDIS) != "redis":
        _leave_out(config, items, lambda item: "redis" not in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: item.get_closest_marker("long_file") is None)


def _leave_out(
    config: pytest.Config, items: list[pytest.Item], which: Callable[[pytest.Item], bool]
) -> None:
    config.hook.pytest_deselected(items=[each for each in items if which(each)])
    items[:] = [each for each in items if not which(each)]


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "skip tests of PostgreSQL and Redis where these are not installed, instead of failing"
    parser.addoption(services.OPTION, action="store_true", help=text)
    kinds = "the database under tests that name none: sqlite, or postgresql, directly or through "
    kinds += "pgbouncer; those marked sqlite are about its file, and are left out then"
    parser.addoption(_DATABASE, choices=_DATABASES, default="sqlite", help=kinds)
    servers = "the server under tests of Redis: redis, or valkey, which leaves out all other tests"
    parser.addoption(_REDIS, choices=("redis", "valkey"), default="redis", help=servers)


def pytest_configure(config: pytest.Config) -> None:
    """Let logs show errors without the values of variables: these take seconds to write out.

    What a shell starts in the background ignores Ctrl-C, and under nohup the end of its terminal:
    so would the commands of tests.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    *others, renderer = structlog.get_config()["processors"]
    assert isinstance(renderer, structlog.dev.ConsoleRenderer)
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*others, plain])
    process_forks.fork_processes(config)


_has_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_has_failed] = report.failed or item.stash.get(_has_failed, False)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """End all servers and other fixtures after a test that has failed and may run again.

    Its next run finds nothing that the first one has used up or broken, nor do the tests after it.
    """
    if item.stash.get(_has_failed, False) and item.config.getoption("reruns", None):
        item.stash[_has_failed] = False
        # Public ways end only what the next test does not need, and reruns keep even that.
        item.session._setupstate.teardown_exact(None)


@pytest.fixture(scope="session")
def over(request: pytest.FixtureRequest) -> "Iterator[Databases | None]":
    """Yield what makes databases of PostgreSQL, where the command line asks for it."""
    kind = request.config.getoption(_DATABASE)
    if kind == "sqlite":
        yield None
        return
    from tests.support.databases import opened, redirect

    with (
        opened(request.getfixturevalue("postgres"), kind, request.config) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        redirect(made, patch)
        yield made


@pytest.fixture(autouse=True)
def _database(over: "Databases | None") -> Iterator[None]:
    """Keep tests over files of SQLite, unless the command line names another database."""
    if over is None:
        yield
        return
    kept = over.known()
    yield
    over.forget(kept)


@pytest.fixture
def caplog() -> Iterator[CaughtLogs]:
    """Yield what is logged during a test."""
    with caught_logs() as caught:
        yield caught


@pytest.fixture(scope="module")
def redis(request: pytest.FixtureRequest) -> "Iterator[RedisServer]":
    """Provide a Redis server for the tests of a module."""
    from tests.support.redis import program, running_redis

    if (found := program(kind := request.config.getoption(_REDIS))) is None:
        services.missing(request.config, kind.title(), f"{kind}-server")
    with running_redis(found) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> "Iterator[PostgresServer]":
    """Provide a PostgreSQL server; ``make`` gives each test a database of its own."""
    from tests.support.postgres import programs, running_postgres

    if (bin := programs()) is None:
        services.missing(request.config, "PostgreSQL", "postgresql")
    with running_postgres(bin) as server:
        yield server


@pytest.fixture
def away_from_midnight() -> None:
    """Wait for the next day, in UTC, where it begins soon: quotas and usage are counted by day."""
    left = _DAY_SECONDS - time.time() % _DAY_SECONDS
    if left < _LONGEST_TEST_SECONDS:
        time.sleep(left)


@pytest.fixture(scope="session")
def shared_server(
    over: "Databases | None",  # noqa: ARG001  it says where servers keep what they keep
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Provide one server for all tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("shared") / "home"
    with running_server(
        home,
        "--set",
        "models.demo-echo.fake.faults=true",
        "--set",
        "models.demo-text.dtype=float32",
        "--set",
        "workers.restart_window=5",
        "--set",
        "workers.max_restarts=100",
        # A machine of the checks may be busy for longer than a worker is given in service.
        "--set",
        "workers.heartbeat_timeout=120",
        # Several models on the cores of a small machine: threads that wait for each other crawl.
        "--set",
        "workers.threads=1",
        forked_workers=True,
    ) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """Provide the shared server; when the test is over, its books must balance."""
    yield shared_server
    eventually(shared_server.idle)
