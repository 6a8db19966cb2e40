"""Progress of a load in bytes; reading ahead; copies to a device through buffers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.models.text import make_tiny_model
from tests.support.wait import eventually
from workers.engines import upload
from workers.engines.library_progress import placed_by_library
from workers.engines.read_ahead import reading_ahead, room
from workers.engines.text.engine import TextEngine
from workers.engines.upload import Upload
from workers.engines.weight_files import tensor_bytes
from workers.engines.weight_progress import WeightProgress
from workers.protocol import Load, Quantization


def test_progress_is_told_by_bytes_and_never_falls() -> None:
    told: list[float] = []
    progress = WeightProgress(1000, told.append)
    for _ in range(10):
        progress.read(100)
        progress.placed(100)
    assert told == sorted(told)
    assert told[0] == pytest.approx(0.045)
    assert told[9] == pytest.approx(0.45)
    assert told[-1] == pytest.approx(0.9)
    progress.placed(500)  # more than there is: the decoder's copies
    progress.reach(0.95)
    assert told[-2:] == pytest.approx([0.9, 0.95])


def test_progress_is_not_told_for_each_small_tensor() -> None:
    told: list[float] = []
    progress = WeightProgress(1_000_000, told.append)
    for _ in range(10_000):
        progress.placed(100)
    assert 50 < len(told) < 200


def test_reading_ahead_tells_of_every_byte(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    files[0].write_bytes(bytes(70_000_000))
    files[1].write_bytes(b"x")
    read: list[int] = []
    with reading_ahead([files[0], tmp_path / "missing", files[1]], read.append):
        eventually(lambda: sum(read) == 70_000_001)
    assert len(read) == 4


def test_reading_ahead_waits_where_ram_is_short(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(80_000_000))
    read: list[int] = []
    allowed = 1
    with reading_ahead([file], read.append, lambda: len(read) < allowed):
        eventually(lambda: len(read) == 1)
        allowed = 9
        eventually(lambda: sum(read) == 80_000_000)
    assert room() > 100_000_000


def test_reading_ahead_ends_with_the_load(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(1000))
    with pytest.raises(RuntimeError), reading_ahead([file] * 3, lambda _count: None):
        raise RuntimeError


def test_progress_of_the_library_is_of_each_weight(tmp_path: Path) -> None:
    folder = make_tiny_model("gpt2", tmp_path / "gpt2")
    sizes = tensor_bytes(folder)
    placed: list[int] = []
    with placed_by_library(sizes, placed.append):
        AutoModelForCausalLM.from_pretrained(folder)
    assert sum(placed) == sum(sizes.values())
    assert len(placed) == len(sizes)


class Event:
    """Stands for a card's: what is recorded is done when it is waited for."""

    def __init__(self, queue: "Queue") -> None:
        self._queue = queue

    def record(self) -> None:
        self._upto = len(self._queue.waiting)

    def synchronize(self) -> None:
        self._queue.run(self._upto)


class Queue:
    """Stands for a card's stream: copies happen as late as they may."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.done = 0

    def run(self, upto: int | None = None) -> None:
        end = len(self.waiting) if upto is None else upto
        for source, out in self.waiting[self.done : end]:
            out.copy_(source)
        self.done = max(self.done, end)


class LateUpload(Upload):
    """Copies through the buffers as to a card, on the CPU, as late as a card may."""

    def __init__(self, buffer_bytes: int) -> None:
        super().__init__(torch.device("cpu"), buffer_bytes=buffer_bytes)
        self._on_card = True
        self._buffers = [torch.zeros(buffer_bytes, dtype=torch.uint8) for _ in range(2)]
        self.queue = Queue()

    def _send(self, staged: Tensor, out: Tensor) -> Any:
        self.queue.waiting.append((staged, out))
        event = Event(self.queue)
        event.record()
        return event

    def join(self) -> None:
        self.queue.run()

    def _wait(self) -> None:
        self.queue.run()


@pytest.fixture
def late() -> LateUpload:
    return LateUpload(buffer_bytes=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upload_by_two_buffers_overwrites_nothing_that_is_still_needed(
    late: LateUpload, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    sources = [torch.randn(3, 21), torch.randn(5), torch.randn(4, 8).t(), torch.randn(64)]
    outs = [torch.empty(source.shape, dtype=dtype) for source in sources]
    for source, out in zip(sources, outs, strict=True):
        late.put(source, out)
    assert 0 < late.queue.done < len(late.queue.waiting)
    late.finish()
    for source, out in zip(sources, outs, strict=True):
        assert torch.equal(out, source.to(dtype))


def test_upload_without_a_card_copies_at_once() -> None:
    source = torch.randn(7)
    out = torch.empty(7, dtype=torch.bfloat16)
    plain = Upload(torch.device("cpu"))
    plain.put(source, out)
    plain.finish()
    assert torch.equal(out, source.bfloat16())
    assert upload._BUFFER % 8 == 0


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_load_of_a_text_model_tells_bytes_that_were_read_and_placed(
    tmp_path: Path, quantization: Quantization | None
) -> None:
    folder = make_tiny_model("llama", tmp_path / "llama")
    spec = Load(
        model="m",
        engine="text",
        path=str(folder),
        kv_cache_bytes=1 << 20,
        quantization=quantization,
    )
    told: list[float] = []
    engine = TextEngine()
    engine.load(spec, told.append)
    engine.close()
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert sum(0 < each < 0.95 for each in told) >= 3  # a layer each
