"""Files of secrets: which are read, and what is said of the others."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.other_user import NEEDS_ROOT, UID
from workers.secret_files import (
    SecretFileRefused,
    check_secret_file,
    read_secret_file,
    read_secret_text,
)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Yield a folder in memory, as secrets are mounted into containers."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def secret(folder: Path, mode: int) -> Path:
    path = folder / "secret"
    path.write_text(" hush\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640, 0o660])
def test_secret_of_its_owner_and_group_is_read_also_through_links(
    tmp_path: Path, mode: int
) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..data").symlink_to("..2026")
    secret(tmp_path / "..2026", mode)
    (link := tmp_path / "secret").symlink_to("..data/secret")
    assert (read_secret_file(link), read_secret_text(link)) == (b" hush\n", "hush")
    check_secret_file(link)


@pytest.mark.parametrize(
    ("mode", "said"), [(0o644, "others may read"), (0o444, "0444"), (0o622, "others may write")]
)
def test_secret_of_everybody_is_refused_on_a_disk_and_the_link_does_not_hide_it(
    tmp_path: Path, mode: int, said: str
) -> None:
    (link := tmp_path / "link").symlink_to(secret(tmp_path, mode))
    for use in (read_secret_file, check_secret_file):
        with pytest.raises(SecretFileRefused, match=said) as refused:
            use(link)
        assert str(refused.value).startswith(f"{link} holds a secret that others may ")
        assert "chmod 600" in refused.value.why


def test_secret_in_memory_that_its_user_left_open_is_refused(memory: Path) -> None:
    with pytest.raises(SecretFileRefused, match="others may read"):
        read_secret_file(secret(memory, 0o444))


@NEEDS_ROOT
def test_secret_in_memory_that_another_user_owns_is_read_unless_others_may_write(
    memory: Path,
) -> None:
    path = secret(memory, 0o444)
    os.chown(path, UID, UID)
    assert read_secret_text(path) == "hush"
    path.chmod(0o446)
    with pytest.raises(SecretFileRefused, match="others may write"):
        read_secret_file(path)


@NEEDS_ROOT
def test_secret_on_a_disk_that_another_user_left_open_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path, 0o444)
    os.chown(path, UID, UID)
    with pytest.raises(SecretFileRefused, match="others may read"):
        read_secret_file(path)


_READ = """
import sys
from workers.secret_files import SecretFileRefused, read_secret_text
for path in sys.argv[1:]:
    try:
        print(read_secret_text(path))
    except SecretFileRefused:
        print("refused")
"""
#: what kubelet and container engines mount, in a namespace of mounts that ends with the program
_MOUNTS = """
mkdir data && mount -t tmpfs none data && printf hush > data/secret && chmod 0444 data/secret
{python} -c {read} data/secret
mount -o remount,ro data
{python} -c {read} data/secret
mkdir -p /run/secrets && mount -t tmpfs none /run/secrets && mkdir disk && printf hush > disk/one
chmod 0444 disk/one && touch /run/secrets/one && mount --bind disk/one /run/secrets/one
{python} -c {read} disk/one /run/secrets/one
"""


@NEEDS_ROOT
def test_secret_that_is_mounted_read_only_or_in_the_containers_folder_is_read(
    tmp_path: Path,
) -> None:
    script = _MOUNTS.format(python=sys.executable, read=shlex.quote(_READ))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    made_run = not Path("/run/secrets").exists()
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made_run and Path("/run/secrets").exists():
        Path("/run/secrets").rmdir()
    if "Operation not permitted" in ran.stderr or "Permission denied" in ran.stderr:
        pytest.skip("this container may not mount")
    assert ran.stdout.split() == ["refused", "hush", "refused", "hush"], ran.stderr


def test_secret_that_is_no_file_or_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "long").touch(0o600)
    (tmp_path / "long").write_bytes(b"a" * 70_000)
    (tmp_path / "bytes").touch(0o600)
    (tmp_path / "bytes").write_bytes(b"hush\xff")
    for name, said in [
        ("pipe", "no file"),
        ("", "no file"),
        ("none", r"cannot be read \(no such file"),
        ("nul\0", "cannot be read"),
        ("long", "larger"),
        ("bytes", "no text"),
    ]:
        with pytest.raises(SecretFileRefused, match=said) as refused:
            read_secret_text(tmp_path / name)
        assert "hush" not in str(refused.value)
    with pytest.raises(SecretFileRefused, match="cannot be read"):
        read_secret_text("~nobody-of-this-name/secret")
