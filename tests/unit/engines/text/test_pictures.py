"""Pictures of messages, whose headers say other things to other readers."""

import io
from pathlib import Path

import pytest
from PIL import Image

from bitinglip.results.pictures import size_of
from workers.engines.base import Refused
from workers.engines.text.pictures import decoded
from workers.protocol import Picture


def test_picture_that_is_larger_than_its_header_says_is_not_decoded(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("P", (400, 300)).save(file, "GIF")
    small = bytearray(file.getvalue())
    small[6:10] = b"\1\0\1\0"  # the screen; its first frame is larger
    (tmp_path / "gif").write_bytes(small)
    width, height = size_of(io.BytesIO(small), gif=True)
    assert (width, height) == (1, 1)
    with pytest.raises(Refused, match="another size") as refused:
        decoded(Picture(str(tmp_path / "gif"), 0, width, height))
    assert refused.value.code == "INVALID_REQUEST"
    (tmp_path / "gif").write_bytes(file.getvalue())
    assert decoded(Picture(str(tmp_path / "gif"), 0, 400, 300)).size == (400, 300)
