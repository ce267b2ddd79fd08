# SPDX-License-Identifier: Apache-2.0
"""Stores for the blocks of a capture: a file, or a ring in memory that drops the oldest."""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import chain
from typing import IO, TYPE_CHECKING, Protocol

from scope_ebpf.capture import frames
from scope_ebpf.capture.frames import BlockKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Room that a bounded file keeps for its last blocks, bytes.
_FOR_THE_END = 64 << 10


class Store(Protocol):
    """The operations of a store that a writer needs."""

    def put(self, kind: BlockKind, payload: bytes) -> bool:
        """Keep one block; False if there is no room for it. Raises OSError."""


class FileStore:
    """
    A *file*, opened without a buffer, that grows by whole blocks, to *most* bytes at most.

    Each block is handed to the kernel at once, so that what was written is there
    even if this process is killed. A block that the disk has no room for is taken back.
    """

    def __init__(self, file: IO[bytes], most: int | None = None) -> None:
        self._file = file
        self._most = most
        self.bytes = 0
        self._write(frames.start())

    def put(self, kind: BlockKind, payload: bytes) -> bool:
        """Write one block; False if it would make the file too large. Raises OSError."""
        data = frames.frame(kind, payload)
        if self._most is not None:
            last = kind in (BlockKind.MAPS, BlockKind.END)
            room = self._most if last else self._most - _FOR_THE_END
            if self.bytes + len(data) > room:
                return False
        self._write(data)
        return True

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.bytes)
                self._file.seek(self.bytes)
            raise
        self.bytes += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RingStore:
    """
    The last *most* bytes of blocks, in memory; whole blocks are dropped from the front.

    Blocks without which the others cannot be read are kept apart: *essential* makes
    them anew whenever the ring is written to a file.
    """

    def __init__(
        self, most: int, essential: Callable[[], Iterable[tuple[BlockKind, bytes]]]
    ) -> None:
        self._most = most
        self._essential = essential
        self._blocks: deque[bytes] = deque()
        self.bytes = 0
        self.dropped = 0

    def put(self, kind: BlockKind, payload: bytes) -> bool:
        """Keep one block, and drop the oldest for which there is no room any more."""
        if kind in (BlockKind.HEAD, BlockKind.NAMES):
            return True
        data = frames.frame(kind, payload)
        self._blocks.append(data)
        self.bytes += len(data)
        while self.bytes > self._most and len(self._blocks) > 1:
            self.bytes -= len(self._blocks.popleft())
            self.dropped += 1
        return True

    def write(self, file: IO[bytes], end: bytes) -> int:
        """Write what is kept to *file*, with the last block *end*; its bytes. Raises OSError."""
        essential = (frames.frame(kind, payload) for kind, payload in self._essential())
        size = 0
        for part in chain((frames.start(),), essential, self._blocks):
            size += file.write(part)
        return size + file.write(frames.frame(BlockKind.END, end))
