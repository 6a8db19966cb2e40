"""A file's stamp differs after each change by which reading it may end otherwise."""

import os
from pathlib import Path

from bitinglip.file_stamp import file_stamp


def test_file_stamp_differs_after_each_change(tmp_path: Path) -> None:
    path = tmp_path / "words"
    seen = [file_stamp(str(path))]
    path.write_text("one")
    seen.append(file_stamp(str(path)))
    path.chmod(0o640)  # such as a file that the server could not read
    seen.append(file_stamp(str(path)))
    path.write_text("other")
    seen.append(file_stamp(str(path)))
    new = tmp_path / "new"
    new.write_text("there")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.chmod(0o640)
    new.replace(path)
    seen.append(file_stamp(str(path)))
    assert len({*seen}) == len(seen)
    assert file_stamp(str(path)) == seen[-1]
    (tmp_path / "link").symlink_to(path)
    assert file_stamp(str(tmp_path / "link")) == seen[-1]
