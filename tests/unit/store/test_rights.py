"""Folders that cannot be read or written, by real owners and modes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.home import Home, HomeError, resolve_home
from cli.checks import checks
from cli.context import CliContext
from model_store.demo import make_fake_models
from model_store.errors import UnreadableFiles
from model_store.rights import refusal, unreadable_models
from model_store.store import ModelStore
from tests.support.other_user import NEEDS_ROOT, UID, as_other_user, open_folder

pytestmark = NEEDS_ROOT


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def created(home: Home) -> str:
    """Return the line with which a start in this home is refused."""
    try:
        home.create()
    except HomeError as error:
        return str(error)
    return "created"


def given_to_other(path: Path) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, UID, UID)


def test_rights_of_anothers_folder_name_users_mode_and_the_command(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o755)
    said = as_other_user(lambda: created(Home(home)))
    assert said.startswith(f"{home} cannot be written to by this process, whose uid is {UID}: it ")
    assert "belongs to uid 0 and gid 0, with mode 0755; " in said
    assert f"run as root: chown -R {UID}:{UID} {home}" in said
    home.chmod(0o700)
    assert "cannot be entered" in as_other_user(lambda: refusal(home / "models", write=True))
    given_to_other(home)
    assert as_other_user(lambda: created(Home(home))) == "created"


def test_rights_are_missing_above_a_home_that_is_not_there(folder: Path) -> None:
    home = folder / "a" / "home"
    said = as_other_user(lambda: created(Home(home)))
    assert said.startswith(f"{folder} cannot be written to")
    assert f"run as root: install -d -o {UID} -g {UID} -m 700 {home}" in said
    folder.chmod(0o700)
    said = as_other_user(lambda: created(Home(folder / "a" / "home")))
    assert said.startswith(f"{folder} cannot be entered")
    assert f"run as root: chmod a+x {folder}" in said


@pytest.mark.parametrize("name", ["secret.key", "bitinglip.db", "bitinglip.db-wal", "files"])
def test_rights_to_each_part_of_the_home_are_checked(name: str, folder: Path) -> None:
    """Check a home as a first start by root leaves it."""
    home = Home(folder / "home")
    home.create()
    home.secret("x")
    for part in ("bitinglip.db", "bitinglip.db-wal"):
        (home.root / part).touch(mode=0o600)
    given_to_other(home.root)
    assert as_other_user(lambda: created(home)) == "created"
    os.chown(home.root / name, 0, 0)
    said = as_other_user(lambda: created(home))
    assert said.startswith(f"{home.root / name} cannot be read")
    finding = as_other_user(lambda: checks._home(CliContext(home, None)))
    assert "level='error'" in finding
    assert f"chown -R {UID}:{UID} {home.root / name}" in finding


def test_rights_of_an_own_folder_are_a_matter_of_its_mode(folder: Path) -> None:
    given_to_other(folder)
    folder.chmod(0o500)
    assert f"run: chmod -R u+rwX {folder}" in as_other_user(lambda: refusal(folder, write=True))
    assert as_other_user(lambda: refusal(folder, write=False)) == "None"


def test_rights_to_models_are_told_by_doctor_at_the_start_and_by_the_load(folder: Path) -> None:
    home = Home(folder / "home")
    home.create()
    store = ModelStore(home.models)
    make_fake_models(store, ["first", "second"])
    given_to_other(home.root)
    manifest = store.get("second")
    file = store.path("second") / manifest.files[0].path
    shutil.copy2(file, folder / "copy")  # both models have one file; this one gets its own
    os.replace(folder / "copy", file)
    os.chown(file, 0, 0)
    file.chmod(0o600)
    told = as_other_user(lambda: list(unreadable_models(home.models)))
    assert told.count("Refusal") == 1
    assert f"{file} cannot be read" in told
    findings = as_other_user(lambda: list(checks._models(CliContext(home, None))))
    assert findings.count("level='error'") == 1
    assert f"second: {file} cannot be read" in findings

    def load() -> object:
        try:
            store._check("second")
        except UnreadableFiles as error:
            return f"{error.code}: {error}"
        return ""

    said = as_other_user(load)
    assert said.startswith(
        f"MODEL_LOAD_FAILED: The server may not read the model's file {file.name}"
    )
    assert str(folder) not in said, "no path of the server in a message"


def test_rights_user_without_an_entry_and_without_home_must_name_a_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOME")

    def chosen() -> object:
        try:
            return resolve_home(None, {})
        except HomeError as error:
            return error

    said = as_other_user(chosen)
    assert (
        said == f"uid {UID} has no home folder of its own; choose one with --home or BITINGLIP_HOME"
    )


def test_rights_in_a_container_are_repaired_on_the_host(folder: Path) -> None:
    system = folder / "system"
    (system / "sys/fs/selinux").mkdir(parents=True)
    (system / ".dockerenv").touch()
    (system / "sys/fs/selinux/enforce").write_text("1")
    home = folder / "home"
    home.mkdir()
    os.chown(home, 1000, 100)
    said = as_other_user(lambda: refusal(home, write=True, system=system))
    for part in ("on the host", "--user 1000:100", ":Z"):
        assert part in said
    (system / "sys/fs/selinux/enforce").write_text("0")
    assert ":Z" not in as_other_user(lambda: refusal(home, write=True, system=system))


def test_rights_on_a_read_only_mount_are_told_as_such(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(home)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        assert str(refusal(home, write=True)).startswith(f"{home} is mounted read-only; ")
        assert refusal(home, write=False) is None
    finally:
        subprocess.run(["umount", str(home)], check=True)
