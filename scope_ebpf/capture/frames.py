# SPDX-License-Identifier: Apache-2.0
"""
The outer form of a capture: a magic, then framed, compressed, checksummed blocks.

Each block is independent, so damage or a cut costs the blocks from there on and none
before.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import IO, TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Not text, so that a conversion of line ends is noticed.
MAGIC = b"\x89scope\r\n"
#: Version of the blocks and their contents; the events have a schema of their own.
VERSION = 1
#: Bytes of a block before compression, at most: bounds the memory that reading one takes.
MAX_RAW = 16 << 20
_START = struct.Struct("<8sI")
#: Marker, kind, size before and after compression, checksum of these and of the payload.
_FRAME = struct.Struct("<4sIIII")
_MARKER = b"SBLK"
#: zlib's fastest: 8,192 records in some milliseconds.
_LEVEL = 1


class BlockKind(IntEnum):
    """Kinds of blocks. Numbers are added, never used again; unknown ones are skipped."""

    HEAD = 1  # JSON, once, first
    RECORDS = 2  # a count, then a column for each field
    NAMES = 3  # JSON: processes and atoms
    SAMPLES = 4  # JSON: what was read of the VM's memory at some moment
    MAPS = 5  # the session's maps
    END = 6  # JSON, once, last
    CLUSTER = 7  # JSON, instead of a head: captures of several nodes follow, each whole


class Block(NamedTuple):
    """One whole block."""

    kind: int
    payload: bytes


def start() -> bytes:
    """The first bytes of a capture."""
    return _START.pack(MAGIC, VERSION)


def frame(kind: BlockKind, payload: bytes) -> bytes:
    """One block as it lies in the file; *payload* is at most MAX_RAW bytes."""
    stored = zlib.compress(payload, _LEVEL)
    checksum = _sum(kind, len(payload), stored)
    return _FRAME.pack(_MARKER, kind, len(payload), len(stored), checksum) + stored


def _sum(kind: int, raw: int, stored: bytes) -> int:
    return zlib.crc32(stored, zlib.crc32(struct.pack("<III", kind, raw, len(stored))))


class Frames:
    """
    The whole blocks of *file*, in order.

    Raises CaptureError where it is no capture at all. :attr:`damage` says, after the
    last block, why there are no more, or is empty where the file just ends; :attr:`end` is
    where the last whole block ends.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.damage = ""
        head = file.read(_START.size)
        if len(head) < _START.size or not head.startswith(MAGIC):
            raise CaptureError("it does not begin as a capture does")
        version = _START.unpack(head)[1]
        if version != VERSION:
            raise CaptureError(
                f"it is a capture of version {version}, and this scope-trace reads {VERSION}"
            )
        self.end = _START.size

    def __iter__(self) -> Iterator[Block]:
        while not self.damage:
            block = self._next()
            if block is None:
                return
            self.end = self._file.tell()
            yield block

    def _next(self) -> Block | None:
        head = self._file.read(_FRAME.size)
        if not head:
            return None
        if len(head) < _FRAME.size:
            return self._damaged("it is cut within a block")
        marker, kind, raw, stored, checksum = _FRAME.unpack(head)
        if marker != _MARKER or raw > MAX_RAW or stored > MAX_RAW + (MAX_RAW >> 8):
            return self._damaged("a block does not begin as one does")
        data = self._file.read(stored)
        if len(data) < stored:
            return self._damaged("it is cut within a block")
        if _sum(kind, raw, data) != checksum:
            return self._damaged("a block has another checksum")
        return self._opened(kind, raw, data)

    def _opened(self, kind: int, raw: int, data: bytes) -> Block | None:
        opener = zlib.decompressobj()
        try:
            payload = opener.decompress(data, raw + 1)
        except zlib.error:
            return self._damaged("a block cannot be decompressed")
        if len(payload) != raw:
            return self._damaged("a block has another size than it says")
        return Block(kind, payload)

    def _damaged(self, why: str) -> Block | None:
        self.damage = f"{why} at byte {self.end:,}"
        return None
