"""The allocator's settings: freed blocks go back to the system, an operator's settings stay."""

import subprocess
import sys

import pytest

from bitinglip import allocator

_PROGRAM = """
import os, sys
from bitinglip.allocator import return_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

assert return_large_blocks({})
bytearray(20_000_000)  # glibc would not map blocks of this size any more
before = resident()
blocks = [bytearray(size) for _ in range(20) for size in (4_000_000, 100_000)]
for block in blocks:
    block[::4096] = b"x" * len(block[::4096])
pinned = blocks[1::2]  # between the large ones
del blocks, block
sys.exit(resident() - before > 20_000_000)
"""


def test_allocator_returns_large_blocks_to_the_system() -> None:
    assert subprocess.run([sys.executable, "-c", _PROGRAM], check=False).returncode == 0


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_allocator_leaves_the_settings_of_the_environment(name: str) -> None:
    assert not allocator.return_large_blocks({name: "1"})
