"""Copies the files that a worker is to open to its node: the gateway's side.

Over a connection of its own, which the node asks for what it lacks: neither a slow disk nor a slow
network delays what other connections carry, and no more than a piece waits in memory.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from workers.codes import Code, LoadCode
from workers.framing import BadFrame
from workers.nodes.files import in_thread, opened
from workers.nodes.job_files import copied_files
from workers.nodes.link import Link, LinkLost, decode
from workers.nodes.messages import (
    PROTOCOL,
    Kind,
    Need,
    OpenFiles,
    Refused,
    Stored,
    Trees,
)
from workers.nodes.models.source import ModelSource, SourceChanged, has_stamps, open_source
from workers.protocol import Command, Event, Failed, Job, Load, LoadFailed, TextJob, TextLora

_PIECE_BYTES = 1 << 20
_PAUSE_SECONDS = 1.0
_LORA_SECONDS = 60.0  #: for one that a job names: other jobs of its worker wait meanwhile


class FilesNode(Protocol):
    """Is the node that files are copied to."""

    @property
    def name(self) -> str: ...
    async def open_files(self, opened: OpenFiles) -> Link:
        """Open a connection for files. Raises LinkLost."""
        ...


class NotCopied(Exception):
    """The files are not on the node; the message says why, and what to do."""

    def __init__(self, message: str, code: LoadCode = "MODEL_LOAD_FAILED") -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Sender:
    """Copies files to the node of one worker, before the commands that name them."""

    def __init__(
        self, source: ModelSource, node: FilesNode, token: str, told: Callable[[int, int], None]
    ) -> None:
        """``told`` is called with the bytes of a load that are there and those of all."""
        self._source, self._node, self._token, self._told = source, node, token, told
        self._loras: set[str] = set()  #: folders that were copied for jobs

    async def bring(self, commands: list[Command]) -> tuple[list[Command], list[Event]]:
        """Copy what commands name; return those that can be done then, and the ends of others."""
        able: list[Command] = []
        ended: list[Event] = []
        for each in commands:
            try:
                if isinstance(each, Load):
                    await self._copy(each.model, copied_files(each), self._told)
                elif isinstance(each, TextJob) and each.lora is not None:
                    await self._bring_lora(each.lora)
            except NotCopied as error:
                if isinstance(each, Load):
                    ended.append(LoadFailed(code=error.code, message=error.message))
                elif isinstance(each, Job):
                    code: Code = "DISK_FULL" if error.code == "DISK_FULL" else "INFERENCE_FAILED"
                    ended.append(Failed(id=each.id, code=code, message=error.message))
            else:
                able.append(each)
        return able, ended

    async def _bring_lora(self, lora: TextLora) -> None:
        """Copy a LoRA, once. Raises NotCopied, also for one that has changed on this machine."""
        if not lora.path or lora.path in self._loras:
            return
        if not await in_thread(has_stamps, Path(lora.path), lora.stamps):
            raise NotCopied("The LoRA has changed since it was taken in: verify it.")
        try:
            async with asyncio.timeout(_LORA_SECONDS):
                await self._copy("the LoRA", [lora.path], _untold, lend=True)
        except TimeoutError:
            text = f"The LoRA has not come to the node {self._node.name} in {_LORA_SECONDS:g} s."
            raise NotCopied(f"{text} The next request goes on with it.") from None
        self._loras.add(lora.path)

    async def _copy(
        self,
        model: str,
        paths: Iterable[str],
        told: Callable[[int, int], None],
        *,
        lend: bool = False,
    ) -> None:
        """Have the node keep these folders and files.

        A connection that ends is opened again as long as something comes through it. Raises
        NotCopied.
        """
        try:
            listed = [await in_thread(self._source.tree, each) for each in dict.fromkeys(paths)]
        except (SourceChanged, OSError) as error:
            text = f"The files of {model} could not be read on the gateway's machine."
            raise NotCopied(text) from error
        trees = Trees(tuple(tree for tree, _ in listed), lend)
        files = {sha256: path for _, paths in listed for sha256, path in paths.items()}
        copying = _Copying(trees, files, told)
        seen = -1
        while True:
            try:
                await copying.run(await self._open())
            except SourceChanged:
                text = f"The files of {model} have changed while they were copied to a node."
                raise NotCopied(text) from None
            except (LinkLost, BadFrame) as error:
                if copying.have <= seen:
                    text = f"The files of {model} could not be copied to the node "
                    raise NotCopied(f"{text}{self._node.name}: {error}.") from error
                seen = copying.have
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    async def _open(self) -> Link:
        return await self._node.open_files(OpenFiles(protocol=PROTOCOL, token=self._token))


def _untold(have: int, total: int) -> None:
    """Tell nobody: a job that waits for its LoRA shows no progress."""
    del have, total


class _Copying:
    """Answers what a node asks for of some files."""

    def __init__(
        self, trees: Trees, files: dict[str, Path], told: Callable[[int, int], None]
    ) -> None:
        self.have = 0  #: bytes, as the node has told last
        self._trees, self._files, self._told = trees, files, told
        contents = [{each.sha256: each.size for each in tree.files} for tree in trees.trees]
        self._sizes = {sha256: size for each in contents for sha256, size in each.items()}
        self._total = sum(sum(each.values()) for each in contents)

    async def run(self, link: Link) -> None:
        """Send until the node has all. Raises NotCopied, SourceChanged, LinkLost or BadFrame."""
        sending: asyncio.Task[None] | None = None
        receiving: asyncio.Task[tuple[Kind, bytes]] | None = None
        try:
            link.tell(Kind.TREES, self._trees)
            while True:
                receiving = receiving or asyncio.create_task(link.receive())
                await asyncio.wait(
                    filter(None, (sending, receiving)), return_when=asyncio.FIRST_COMPLETED
                )
                if sending is not None and sending.done():
                    done, sending = sending, None
                    done.result()
                if not receiving.done():
                    continue
                kind, payload = receiving.result()
                receiving = None
                match kind:
                    case Kind.NEED:
                        if sending is not None:  # its last piece has come there
                            await sending
                        sending = asyncio.create_task(self._send(link, decode(payload, Need)))
                    case Kind.STORED:
                        self.have = min(decode(payload, Stored).bytes, self._total)
                        self._told(self.have, self._total)
                    case Kind.KEPT:
                        return
                    case Kind.REFUSED:
                        refused = decode(payload, Refused)
                        raise NotCopied(refused.message, refused.code)
                    case _:
                        raise BadFrame(f"a frame {kind.name} where files are copied")
        finally:
            running = [each for each in (sending, receiving) if each is not None]
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            link.abort()

    async def _send(self, link: Link, need: Need) -> None:
        """Send a file from a place to its end. Raises SourceChanged or LinkLost."""
        path, size = self._files.get(need.sha256), self._sizes.get(need.sha256, 0)
        if path is None or need.offset > size:
            raise BadFrame("it asks for a file that was not listed")
        fd = await opened(open_source, path, size, need.offset)
        try:
            left = size - need.offset
            while left > 0:
                piece = await in_thread(os.read, fd, min(_PIECE_BYTES, left))
                if not piece:
                    raise SourceChanged
                left -= len(piece)
                link.send(Kind.DATA, piece)
                await link.drain()
        except OSError as error:
            raise SourceChanged from error
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
