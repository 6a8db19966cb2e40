"""Tests what a compromised worker can still do, under the real launcher."""

import asyncio
import ctypes
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.support.probe_engine  # noqa: F401  an engine more
from tests.support.pool_harness import Recorder, with_pool
from tests.support.wait import eventually
from workers.confinement import Kernel
from workers.engines.registry import ENGINES
from workers.folders import WorkFolders
from workers.launcher import SpawnedWorker, SpawnLauncher
from workers.pool import StartFailed, WorkerPool
from workers.protocol import Confinement, ImageOptions, Load, Sampling, TextDone, TextJob

KERNEL = Kernel.find()
pytestmark = pytest.mark.skipif(
    KERNEL.landlock < 6 or not KERNEL.seccomp, reason="this kernel has not all that confines"
)
MEASURES = "no_new_privs no_core not_dumpable file_size memory capabilities files system_calls"
MEMORY = 2 << 30
SECRET = ctypes.create_string_buffer(b"secret")  #: in the memory of the gateway, which this is


class Place:
    """Holds a home, a model, and listening sockets: all that a worker might try to reach."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.work = self.home / "work"
        self.model = self.home / "models" / "m" / "files"
        parts = [self.home / name for name in ("files", "uploads", "cache")]
        for folder in (self.work, self.model, *parts):
            folder.mkdir(parents=True)
        for name in ("admin.key", "secret.key", "bitinglip.db", "files/theirs", "uploads/mine"):
            (self.home / name).write_text("secret")
        (self.model / "config.json").write_text("{}")
        (self.model.parent / "manifest.json").write_text("{}")
        self.outside = root / "outside"
        self.outside.mkdir()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(root / "unix"))
        self.unix.listen()
        self.names: dict[str, Any] = {
            "HOME": str(self.home),
            "MODEL": str(self.model),
            "OUTSIDE": str(self.outside),
            "UNIX": str(root / "unix"),
            "PORT": self.tcp.getsockname()[1],
            "GATEWAY": os.getpid(),
            "SECRET": ctypes.addressof(SECRET),
        }

    def confinement(self, mode: Any) -> Confinement:
        uploads, cache = str(self.home / "uploads"), str(self.home / "cache")
        return Confinement(
            mode=mode,
            inputs=uploads,
            caches=cache,
            hidden=(str(self.home),),
            memory_bytes=MEMORY,
        )

    def spec(self, **options: Any) -> Load:
        return Load(**{"model": "m", "engine": "probe", "path": str(self.model)} | options)

    def launcher(self, mode: Any, work: Path | None = None) -> SpawnLauncher:
        return SpawnLauncher(
            folders=WorkFolders(work or self.work), confinement=self.confinement(mode)
        )

    def ask(
        self, code: dict[str, str], mode: Any, *, work: Path | None = None, **options: Any
    ) -> dict[str, str]:
        """Return the outcomes of code in a worker, by the names that were given them."""
        found: dict[str, str] = {}

        async def test(pool: WorkerPool, seen: Recorder) -> None:
            worker = await pool.start("m/0", self.spec(**options))
            names = {**self.names, "OWN": str(worker.folder)}
            for name, text in code.items():
                prompt = json.dumps({"code": text, "names": names})
                worker.send(TextJob(id=name, prompt=prompt, sampling=Sampling(max_tokens=1)))
            await seen.until(lambda: len(seen.events) == len(code))
            found.update({e.id: e.text for e in seen.events if isinstance(e, TextDone)})
            assert worker.ready is not None
            found["measures"] = " ".join(worker.ready.confined.measures)
            found["missing"] = "; ".join(worker.ready.confined.missing)

        with_pool(test, self.launcher(mode, work))
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    yield place
    place.tcp.close()
    place.unix.close()


#: What an intruder tries; each is refused in a confined worker and, to show that the trial is one,
#: not in one that is not. By name: the code, the refusal, what it gives where nothing refuses it.
TRIALS = {
    "the admin key": ("read(HOME + '/admin.key')", "EACCES", "6 bytes"),
    "the secret of the keys": ("read(HOME + '/secret.key')", "EACCES", "6 bytes"),
    "the database": ("read(HOME + '/bitinglip.db')", "EACCES", "6 bytes"),
    "a result": ("read(HOME + '/files/theirs')", "EACCES", "6 bytes"),
    "the names of results": ("len(os.listdir(HOME + '/files'))", "EACCES", "1"),
    "the names of uploads": ("len(os.listdir(HOME + '/uploads'))", "EACCES", "1"),
    "an upload rewritten": ("write(HOME + '/uploads/mine')", "EACCES", "written"),
    "a model's manifest": ("read(MODEL + '/../manifest.json')", "EACCES", "2 bytes"),
    "the gateway's command line": ("bool(read(f'/proc/{GATEWAY}/cmdline'))", "EACCES", "True"),
    "the gateway's environment": ("bool(read(f'/proc/{GATEWAY}/environ'))", "EACCES", "True"),
    "the gateway's memory as a file": ("open(f'/proc/{GATEWAY}/mem').name[:5]", "EACCES", "/proc"),
    "the gateway's memory by a call": ("peek(GATEWAY, SECRET)", "EPERM", "1"),
    "a file in the home": ("write(HOME + '/config.yaml')", "EACCES", "written"),
    "a file among the results": ("write(HOME + '/files/new')", "EACCES", "written"),
    "a file of the model": ("write(MODEL + '/config.json')", "EACCES", "written"),
    "a file anywhere": ("write(OUTSIDE + '/new')", "EACCES", "written"),
    "a folder anywhere": ("os.mkdir(OUTSIDE + '/folder')", "EACCES", "None"),
    "a link to a result": ("link(OWN + '/theirs', HOME + '/files/theirs')", "EXDEV", "linked"),
    "a way out by a link": ("os.symlink(HOME + '/admin.key', OWN + '/way')", "EACCES", "None"),
    "a result moved away": (
        "move(HOME + '/files/theirs', OWN + '/moved')",
        "EACCES",
        "moved",
    ),
    "cutting a file off": ("os.truncate(HOME + '/files/theirs', 6)", "EPERM", "None"),
    "the mode of the home": ("os.chmod(HOME, 0o700)", "EPERM", "None"),
    "the owner of the home": ("os.chown(HOME, -1, -1)", "EPERM", "None"),
    "the times of a file": ("os.utime(HOME + '/admin.key')", "EPERM", "None"),
    "watching for names": ("call('inotify_init1', 0) > 0", "EPERM", "True"),
    "the gateway by TCP": ("connect(socket.AF_INET, ('127.0.0.1', PORT))", "EPERM", "connected"),
    "a service by its socket": ("connect(socket.AF_UNIX, UNIX)", "EPERM", "connected"),
    "listening": ("bool(socket.socket(socket.AF_INET6))", "EPERM", "True"),
    "a program": ("start_program()", "EPERM", "started"),
    "a process": ("fork()", "EPERM", "forked"),
    "a child of another session": ("leave_session()", "EPERM", "left"),
    "the gateway's signals": ("send_signal(GATEWAY)", "EPERM", "sent"),
    "the gateway's limits": (
        "ctypes.CDLL(None).prlimit(GATEWAY, 7, None, ctypes.create_string_buffer(16))",
        *("-1", "0"),
    ),
    "a namespace": ("libc.unshare(0x40000000)", "-1", "0"),
    "a tracer": ("call('ptrace', 16, 1 << 22)", "EPERM", "ESRCH"),
    "the kernel's rings": ("call('io_uring_setup', 8, 0)", "EPERM", "EFAULT"),
    "shared memory": ("call('shmget', 1 << 30, 0, 0)", "EPERM", "ENOENT"),
    "a large file": ("write(OWN + '/large', 1 << 30)", "EFBIG", "written"),
    "all memory": ("len(mmap.mmap(-1, 3 << 30, mmap.MAP_PRIVATE))", "ENOMEM", str(3 << 30)),
    "a thread's way to the key": ("start_thread(read, HOME + '/admin.key')", "EACCES", "6 bytes"),
    "a thread's way out": ("start_thread(connect, socket.AF_UNIX, UNIX)", "EPERM", "connected"),
}
#: What engines need, confined or not.
NEEDED = {
    "its model": ("read(MODEL + '/config.json')", "2 bytes"),
    "the model's folder": ("os.listdir(MODEL)", "['config.json']"),
    "an upload whose name it was told": ("read(HOME + '/uploads/mine')", "6 bytes"),
    "temporary files": ("in_new_folder(OWN + '/folder')", "done"),
    "the place of temporary files": (
        "__import__('tempfile').gettempdir() == OWN or __import__('tempfile').gettempdir()",
        "True",
    ),
    "a late import": ("__import__('wave').__name__", "wave"),
    "its own memory": ("bool(read('/proc/self/statm'))", "True"),
    "chance": ("len(os.urandom(8))", "8"),
    "threads": ("start_thread(len, 'ab')", "2"),
    "its own end": ("os.kill(os.getpid(), 0)", "None"),
}


@pytest.fixture(scope="module")
def confined(place: Place) -> dict[str, str]:
    code = {name: trial[0] for name, trial in (TRIALS | NEEDED).items()}
    return place.ask(code, "auto")


@pytest.fixture(scope="module")
def unconfined(place: Place) -> dict[str, str]:
    code = {name: trial[0] for name, trial in (TRIALS | NEEDED).items()}
    return place.ask(code, "off")


@pytest.mark.parametrize("name", TRIALS)
def test_confinement_refuses(name: str, confined: dict[str, str]) -> None:
    assert confined[name] == TRIALS[name][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="some of it only root may do at all")
def test_confinement_trials_succeed_without_it(unconfined: dict[str, str]) -> None:
    assert {name: unconfined[name] for name in TRIALS} == {n: t[2] for n, t in TRIALS.items()}


@pytest.mark.parametrize("name", NEEDED)
def test_confinement_leaves_what_engines_need(name: str, confined: dict[str, str]) -> None:
    assert confined[name] == NEEDED[name][1]


def test_confinement_is_reported(confined: dict[str, str], unconfined: dict[str, str]) -> None:
    assert (confined["measures"], confined["missing"]) == (MEASURES, "")
    assert (unconfined["measures"], unconfined["missing"]) == ("", "")


def test_confinement_of_a_card_takes_only_what_hurts_no_driver_unless_all_is_required(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {
        "key": "read(HOME + '/admin.key')",
        "program": "start_program()",
        "driver's cache": "in_new_folder(os.environ['CUDA_CACHE_PATH'] + '/folder')",
        "torch's cache": "in_new_folder(os.environ['PYTORCH_KERNEL_CACHE_PATH'] + '/folder')",
        "kept": "os.environ['CUDA_CACHE_PATH'].startswith(HOME + '/cache/m/')",
    }
    caches = {"driver's cache": "done", "torch's cache": "done", "kept": "True"}
    for name in ("CUDA_CACHE_PATH", "PYTORCH_KERNEL_CACHE_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = place.ask(code, "auto", device="cuda")
    assert {name: found[name] for name in caches} == caches
    assert found["measures"] == "no_new_privs no_core not_dumpable"
    assert "files: not tried on a card yet" in found["missing"]
    assert (found["key"], found["program"]) == ("6 bytes", "started")
    found = place.ask(code, "require", device="cuda")
    assert {name: found[name] for name in caches} == caches
    assert found["measures"] == MEASURES.replace(" memory", "")
    assert (found["key"], found["program"], found["missing"]) == ("EACCES", "EPERM", "")


def test_confinement_lets_a_compiler_run_and_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it at its import
    code = {
        "compiler": "start_program()",
        "own signal": "send_signal(os.getpid())",
        "session": "leave_session()",
        "cache": "in_new_folder(os.environ['TORCHINDUCTOR_CACHE_DIR'] + '/folder')",
        "where": "os.environ['TORCHINDUCTOR_CACHE_DIR'].startswith(HOME + '/cache/m/')",
        "key": "read(HOME + '/admin.key')",
        "network": "connect(socket.AF_INET, ('127.0.0.1', PORT))",
        "gateway": "send_signal(GATEWAY)",
        "memory": "peek(GATEWAY, SECRET)",
        "namespace": "libc.unshare(0x40000000)",
    }
    found = place.ask(code, "require", image=ImageOptions(compile=True))
    assert found["missing"] == "programs: image.compile runs a compiler"
    assert {name: found[name] for name in code} == {
        "compiler": "started",
        "own signal": "sent",
        "session": "EPERM",
        "cache": "done",
        "where": "True",
        "key": "EACCES",
        "network": "EPERM",
        "gateway": "EPERM",
        "memory": "EPERM",
        "namespace": "-1",
    }


def test_confinement_is_whole_with_the_libraries_of_all_engines(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No library has a thread by the time that the worker is confined."""
    engines = [info for name, info in ENGINES.items() if "probe" not in name]
    imports = [module for info in engines for module in info.preimport]
    assert len(imports) >= 5
    probe = replace(ENGINES["probe"], preimport=(*ENGINES["probe"].preimport, *imports))
    monkeypatch.setitem(ENGINES, "probe", probe)
    found = place.ask({"libraries": "len(os.listdir('/proc/self/task'))"}, "require")
    assert (found["measures"], found["missing"]) == (MEASURES, "")


def test_confinement_says_which_threads_it_does_not_hold(place: Place) -> None:
    found = place.ask({}, "auto", engine="threaded probe")
    assert found["missing"] == "threads: 1 that libraries began are not bound by file rules"


def test_confinement_that_is_required_and_not_whole_refuses_the_load(place: Place) -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        with pytest.raises(StartFailed, match="'require', and this machine lacks: threads") as why:
            await pool.start("m/0", place.spec(engine="threaded probe"))
        assert why.value.code == "MODEL_LOAD_FAILED"
        assert pool.workers == []

    with_pool(test, place.launcher("require"))


def test_confinement_does_not_keep_a_worker_from_dying_with_its_gateway(place: Place) -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("m/0", place.spec())
        assert isinstance(worker.handle, SpawnedWorker)
        with Path(os.devnull).open("rb") as null:  # noqa: ASYNC230
            os.dup2(null.fileno(), worker.handle._death)  # the gateway's end is gone
        async with asyncio.timeout(60):
            await worker.ended.wait()
        assert worker.cause == "exited with code 1"

    with_pool(test, place.launcher("auto"))


def test_work_folder_lives_as_long_as_its_worker(place: Place) -> None:
    async def test(pool: WorkerPool, _seen: Recorder) -> None:
        worker = await pool.start("m/0", place.spec())
        assert worker.folder is not None
        assert worker.folder.stat().st_mode & 0o777 == 0o700
        (worker.folder / "left").mkdir()
        await pool.kill(worker, "killed")
        await asyncio.to_thread(eventually, lambda: not worker.folder.exists())

    with_pool(test, place.launcher("auto"))


def test_work_folder_that_cannot_be_made_loosens_nothing(place: Place) -> None:
    """Simulate a full disk: models that write no files still run."""
    blocked = place.home / "blocked"
    blocked.touch()
    code = {"key": "read(HOME + '/admin.key')", "results": "write(HOME + '/files/new')"}
    found = place.ask(code, "auto", work=blocked)
    assert (found["key"], found["results"]) == ("EACCES", "EACCES")
    assert (found["measures"], found["missing"]) == (MEASURES, "")
