"""Fetch the dashboard's libraries, and one of its tests', with npm, and write the manifests that
tests hold them against.

Run by hand, after a version here was changed: ``python -m scripts.vendor``. It needs npm and its
registry; the server and the tests need neither.
"""

import gzip
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from bitinglip.api.dashboard import FOLDER

VENDOR = FOLDER / "vendor"
MANIFEST = VENDOR / "manifest.json"
TESTS_VENDOR = Path(__file__).parents[1] / "tests" / "support" / "vendor"


class Library(NamedTuple):
    """Names a package, and which of its files become which of ours."""

    name: str
    version: str
    licence: str
    files: dict[str, str]
    #: what is replaced in the files: browsers resolve no bare names without an inline import map,
    #: which our policy forbids
    replaced: tuple[str, str] | None = None


LIBRARIES = (
    Library(
        "preact",
        "11.2.0",
        "MIT",
        {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "hooks.mjs"},
        ('from"preact"', 'from"./preact.mjs"'),
    ),
    Library("htm", "3.1.1", "Apache-2.0", {"dist/htm.mjs": "htm.mjs"}),
    Library(
        "uplot",
        "1.6.32",
        "MIT",
        {"dist/uPlot.esm.js": "uplot.mjs", "dist/uPlot.min.css": "uplot.css"},
    ),
    Library("marked", "18.2.1", "MIT", {"lib/marked.esm.js": "marked.mjs"}),
    Library("dompurify", "3.5.0", "Apache-2.0", {"dist/purify.es.mjs": "purify.mjs"}),
)
#: what tests look at the dashboard with
TESTS_LIBRARIES = (Library("axe-core", "4.14.1", "MPL-2.0", {"axe.min.js": "axe.min.js.gz"}),)


def main() -> None:
    """Write all files below the vendor folders, and their manifests."""
    for folder, libraries in ((VENDOR, LIBRARIES), (TESTS_VENDOR, TESTS_LIBRARIES)):
        folder.mkdir(exist_ok=True)
        manifest = [_fetch(library, folder) for library in libraries]
        (folder / MANIFEST.name).write_text(json.dumps(manifest, indent=2) + "\n")


def _fetch(library: Library, into: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        package = f"{library.name}@{library.version}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        package_folder = Path(folder) / "package"
        licence = f"{library.name}.licence.txt"
        (into / licence).write_bytes((package_folder / "LICENSE").read_bytes())
        files = {
            own: _write(library, (package_folder / original).read_bytes(), original, into / own)
            for original, own in library.files.items()
        }
    return {
        "name": library.name,
        "version": library.version,
        "licence": library.licence,
        "licence_file": licence,
        "files": files,
    }


def _write(library: Library, body: bytes, original: str, own: Path) -> dict[str, object]:
    """Write a file, compressed if its name says so; return what the manifest says of it."""
    told: dict[str, object] = {"from": original, "sha256": hashlib.sha256(body).hexdigest()}
    if library.replaced is not None and library.replaced[0].encode() in body:
        before, after = library.replaced
        body = body.replace(before.encode(), after.encode())
        told["replaced"] = {before: after}
    own.write_bytes(gzip.compress(body, mtime=0) if own.suffix == ".gz" else body)
    return told


if __name__ == "__main__":
    main()
