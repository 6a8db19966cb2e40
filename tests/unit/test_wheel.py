"""The wheel holds the product as it is in the tree: code, pages, migrations, demo models' files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bitinglip", "workers", "model_store", "cli")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_wheel_holds_every_file_of_the_packages(names: set[str]) -> None:
    tree = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {each for each in names if ".dist-info/" not in each} == tree


def test_wheel_holds_what_is_no_code(names: set[str]) -> None:
    for path in (
        "bitinglip/dashboard/index.html",
        "bitinglip/dashboard/vendor/manifest.json",
        "bitinglip/db/migrations/env.py",
        "bitinglip/py.typed",
        "model_store/hub/aliases.yaml",
        "model_store/demo/image.json",
        "model_store/demo/text_model/model.safetensors",
    ):
        assert path in names
