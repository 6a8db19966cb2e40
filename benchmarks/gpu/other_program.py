"""Holds memory of the card as another program: ``python -m benchmarks.gpu.other_program``.

It imports torch, then waits for one line on its standard input: ``take BYTES`` or ``leave BYTES``.
It holds that much, or all but that much, until it is ended.
"""

import select
import subprocess
import sys
from types import TracebackType
from typing import Self

_PATIENCE = 60.0


class OtherProgram:
    """``with OtherProgram() as other:`` starts it; it has no context before it takes memory."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.other_program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, size: int) -> int:
        """Have it hold so many bytes; gives what it holds. Raises RuntimeError if it cannot."""
        return self._ask(f"take {size}")

    def leave(self, size: int) -> int:
        """Have it hold all of the card's free memory but so many bytes; gives what it holds."""
        return self._ask(f"leave {size}")

    def close(self) -> None:
        """Kill it and wait for its end; may be called again."""
        self._process.kill()
        self._process.wait()

    def _ask(self, line: str) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], _PATIENCE)
        answer = stdout.readline() if ready else b""
        if not answer.strip().isdigit():
            raise RuntimeError("the program that was to take the card's memory did not")
        return int(answer)


def main() -> None:
    import torch

    word, number = sys.stdin.readline().split()
    free, _ = torch.cuda.mem_get_info()
    size = int(number) if word == "take" else free - int(number)
    held = torch.empty(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    print(held.numel(), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
