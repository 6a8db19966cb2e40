"""Findings of ``doctor`` about storage, foreign libraries and compilers; all of them are made
up."""

from pathlib import Path

import pytest

from bitinglip.settings import Settings
from cli.checks.surroundings import compilers, descriptions, libraries, storage
from tests.support import machines


def test_storage_that_is_slow_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    table = tmp_path / "proc/self/mountinfo"
    table.write_text("27 1 0:50 / / rw - nfs4 server:/models rw")
    [found] = storage(Path("/models"), tmp_path)
    assert found.level == "warning"
    assert found.detail.startswith("/models is on a network file system (nfs4): ")
    table.write_text("27 1 0:50 / / rw - exfat /dev/x rw")
    [found] = storage(Path("/models"), tmp_path)
    assert "without hard links (exfat)" in found.detail
    table.write_text("27 1 0:50 / / rw - ext4 /dev/x rw")
    assert list(storage(Path("/models"), tmp_path)) == []


@pytest.mark.parametrize(
    ("folder", "names", "found"),
    [
        ("cuda/lib64", ["libcudnn.so.9", "libcublas.so.12", "libm.so"], ["libcublas", "libcudnn"]),
        ("cuda/lib64", ["libcuda.so.1", "libnvidia-ml.so.1"], []),
        ("venv/site-packages/nvidia/cudnn/lib", ["libcudnn.so.9"], []),
    ],
)
def test_libraries_of_a_toolkit_in_front_of_torch_s_are_a_finding(
    folder: str, names: list[str], found: list[str], tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    for name in names:
        (tmp_path / folder / name).touch()
    for environ in (
        {"LD_LIBRARY_PATH": f"/nowhere::{tmp_path / folder}"},
        {"LD_PRELOAD": " ".join(str(tmp_path / folder / name) for name in names)},
    ):
        findings = list(libraries(environ))
        told = " ".join(finding.detail for finding in findings)
        assert all(finding.level == "warning" for finding in findings)
        assert [name for name in ("libcublas", "libcudnn", "libm", "libcuda,") if name in told] == (
            found
        )
    assert list(libraries({})) == []


def test_compiler_that_a_model_needs_is_a_finding(tmp_path: Path) -> None:
    compiled = {"image": {"compile": True}}
    wanted = Settings.model_validate({"models": {"painter": compiled, "other": {}}})
    [found] = compilers(wanted, {"PATH": str(tmp_path)})
    assert (found.check, found.level) == ("compiler", "error")
    assert found.detail.startswith("painter: image.compile needs a C compiler")
    assert found.advice.startswith("install one")
    assert list(compilers(Settings(), {"PATH": str(tmp_path)})) == []
    (tmp_path / "g++").touch(mode=0o755)
    on_cpu = Settings.model_validate({"models": {"painter": {**compiled, "device": "cpu"}}})
    assert list(compilers(on_cpu, {"PATH": str(tmp_path)})) == []


@pytest.mark.parametrize("folder", ["etc/cdi", "var/run/cdi"])
@pytest.mark.parametrize(
    ("loaded", "written", "stale"),
    [
        ("580.95.05", "580.95.05", False),
        ("580.95.05", "570.86.10", True),
        (None, "570.86.10", False),
        ("580.95.05", None, False),
    ],
)
def test_description_of_cards_for_containers_is_stale_after_an_update(
    folder: str, loaded: str | None, written: str | None, stale: bool, tmp_path: Path
) -> None:
    if loaded is not None:
        for name, text in machines.driver(loaded).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    (tmp_path / folder).mkdir(parents=True)
    path = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{written}" if written else "/usr/bin/true"
    (tmp_path / folder / "nvidia.yaml").write_text(f"mounts:\n- hostPath: {path}\n")
    found = list(descriptions(tmp_path))
    assert [each.level for each in found] == ["warning"] * stale
    for each in found:
        assert f"/{folder}/nvidia.yaml gives containers the libraries of driver" in each.detail
        assert each.advice == f"sudo nvidia-ctk cdi generate --output=/{folder}/nvidia.yaml"
