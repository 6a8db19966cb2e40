"""The home folder: private, whole, and one server's at a time."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bitinglip.home import Home, HomeError, HomeInUse, HomeLock, resolve_home
from bitinglip.private_files import replace_private

HOLD = """
import sys, time
from pathlib import Path
from bitinglip.home import Home, HomeInUse, HomeLock
try:
    with HomeLock(Home(Path(sys.argv[1]))):
        print("held", flush=True)
        sys.stdin.read()
except HomeInUse as error:
    print(error, flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def holder(home: Home) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_home_is_chosen_by_flag_environment_and_default() -> None:
    assert resolve_home(Path("/a"), {"BITINGLIP_HOME": "/b"}) == Path("/a")
    assert resolve_home(None, {"BITINGLIP_HOME": "/b"}) == Path("/b")
    assert resolve_home(None, {"BITINGLIP_HOME": ""}) == Path.home() / ".bitinglip"
    assert resolve_home(Path("x"), {}).is_absolute()


def test_home_is_private(home: Home) -> None:
    home.secret("x")
    replace_private(home.admin_key, b"key\n")
    assert [mode(path) for path in (home.root, home.models, home.files)] == [0o700] * 3
    assert [mode(path) for path in (home.secret_key, home.admin_key)] == [0o600] * 2


def test_home_that_is_loose_is_closed_and_a_shared_folder_is_not_touched(home: Home) -> None:
    home.root.chmod(0o777)
    home.create()
    assert mode(home.root) == 0o700
    (home.root / "thesis.txt").touch()
    home.root.chmod(0o755)
    home.create()
    assert mode(home.root) == 0o755
    home.root.chmod(0o777)
    with pytest.raises(HomeError, match="chmod 700"):
        home.create()


def test_secret_stays_and_each_purpose_has_its_own(home: Home) -> None:
    first = home.secret("keys")
    assert len(home.secret_key.read_bytes()) == 32
    assert Home(home.root).secret("keys") == first
    assert home.secret("tokens") != first
    assert first != home.secret_key.read_bytes()
    assert {path.name for path in home.root.iterdir()} == {
        "models",
        "files",
        "uploads",
        "batches",
        "secret.key",
    }


def test_secret_that_cannot_be_trusted_is_refused(home: Home) -> None:
    home.secret_key.write_bytes(b"")
    home.secret_key.chmod(0o600)
    with pytest.raises(HomeError, match="too short"):
        home.secret("keys")
    home.secret_key.chmod(0o644)
    with pytest.raises(HomeError, match="chmod 600"):
        home.secret("keys")
    home.secret_key.rename(home.root / "moved")
    for target in (home.root / "moved", home.root / "nowhere"):
        home.secret_key.unlink(missing_ok=True)
        home.secret_key.symlink_to(target)
        with pytest.raises(HomeError, match=r"secret\.key"):
            home.secret("keys")


def test_secret_replacement_does_not_follow_a_link(home: Home, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    home.admin_key.symlink_to(victim)
    replace_private(home.admin_key, b"key")
    assert victim.read_text() == "mine"
    assert not home.admin_key.is_symlink()


def test_lock_of_the_home_goes_to_one_of_eight_starts_and_a_kill_frees_it(home: Home) -> None:
    processes = [holder(home) for _ in range(8)]
    try:
        words = {process.pid: said(process) for process in processes}
        (winner,) = [pid for pid, word in words.items() if word == "held"]
        told = {word.partition(";")[0] for pid, word in words.items() if pid != winner}
        assert told == {f"{home.root} is in use by pid {winner}"}
        os.kill(winner, signal.SIGKILL)
        next(process for process in processes if process.pid == winner).wait()
        with HomeLock(home):
            assert home.lock.read_text() == f"{os.getpid()}\n"
    finally:
        for process in processes:
            process.communicate()


def test_lock_of_the_home_holds_within_one_process_too(home: Home) -> None:
    with HomeLock(home), pytest.raises(HomeInUse, match=f"pid {os.getpid()}"):
        HomeLock(home).acquire()
    with HomeLock(home):
        pass


def test_server_json_counts_only_while_the_lock_is_held(home: Home) -> None:
    assert home.read_server_json() is None
    with HomeLock(home):
        assert home.read_server_json() is None
        home.write_server_json("http://127.0.0.1:1", 7)
        assert home.read_server_json() == {"url": "http://127.0.0.1:1", "pid": 7}
        assert mode(home.server_json) == 0o600
    assert home.server_json.exists()
    assert home.read_server_json() is None
    home.remove_server_json()
    home.remove_server_json()


def test_drafts_of_servers_that_died_are_removed(home: Home) -> None:
    for number in range(3):
        home.server_json.with_name(f"server.json.{number}").write_bytes(b"{")
    home.write_server_json("http://localhost:1", 1)
    assert [path.name for path in home.root.glob("server.json*")] == ["server.json"]


def test_machine_that_went_down_under_its_server_is_known_by_what_that_left(home: Home) -> None:
    assert not home.machine_went_down(2e9)
    home.write_server_json("http://127.0.0.1:1", 7)
    os.utime(home.server_json, (1e9, 1e9))
    assert home.machine_went_down(1e9 + 60)
    assert not home.machine_went_down(1e9 + 1)
    assert not home.machine_went_down(1e9 - 60)  # the server was killed
    home.remove_server_json()
    assert not home.machine_went_down(2e9)


def test_secret_of_another_home_is_taken_over_and_never_replaces_one(
    home: Home, tmp_path: Path
) -> None:
    other = Home(tmp_path / "other")
    other.create()
    expected = home.secret("keys")
    other.adopt_secret(home.secret_key)
    other.adopt_secret(home.secret_key)
    assert (other.secret("keys"), mode(other.secret_key)) == (expected, 0o600)
    third = Home(tmp_path / "third")
    third.create()
    own = third.secret("keys")
    with pytest.raises(HomeError, match="another secret"):
        third.adopt_secret(home.secret_key)
    assert third.secret("keys") == own
    with pytest.raises(HomeError, match=r"gateways\.secret_file: .*missing is not there"):
        third.adopt_secret(tmp_path / "missing")
    (mounted := tmp_path / "mounted").write_bytes(home.secret_key.read_bytes())
    mounted.chmod(0o440)
    (tmp_path / "link").symlink_to(mounted)
    other.adopt_secret(tmp_path / "link")
    mounted.chmod(0o444)
    with pytest.raises(HomeError, match=r"gateways\.secret_file: .*link holds.* chmod 600 it"):
        other.adopt_secret(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "other"):
        with pytest.raises(HomeError):
            third.adopt_secret(tmp_path / name)


def test_home_that_shares_its_files_keeps_them_elsewhere_and_has_one_name(tmp_path: Path) -> None:
    shared = Home(tmp_path / "home", common=tmp_path / "common")
    with pytest.raises(HomeError, match=r"gateways\.folder.* mount it"):
        shared.create()
    (tmp_path / "common").mkdir()
    shared.create()
    assert [shared.files, shared.uploads, shared.batches] == [
        tmp_path / "common" / name for name in ("files", "uploads", "batches")
    ]
    assert not list((tmp_path / "home").glob("*es"))
    name = shared.identity()
    assert shared.identity() == name
    (shared.common or shared.root).chmod(0o777)
    with pytest.raises(HomeError, match="chmod o-w"):
        shared.create()
    shared.gateway_id.write_text("../x")
    with pytest.raises(HomeError, match=r"gateway\.id"):
        shared.identity()
