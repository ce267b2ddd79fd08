# SPDX-License-Identifier: Apache-2.0
"""
One file with the captures of several nodes.

Behind the first block, which says how many bytes each capture has, they follow as they were
recorded. Clocks and pairs are not in it: they are found again wherever the file is read, so nobody
has to believe what a file says of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from scope_ebpf.capture import frames
from scope_ebpf.capture.frames import BlockKind, Frames
from scope_ebpf.capture.reader import Capture
from scope_ebpf.capture.values import SIGNED, document
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

#: Captures in one file, and bytes that are copied at once.
MOST_CAPTURES, _PART = 100, 1 << 20
_FIRST = "the first block"


class _Section:
    """Some bytes of a file, as a file that can be read once."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._size, self._read = file, size, 0
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._read
        data = self._file.read(left if size < 0 else min(size, left))
        self._read += len(data)
        return data

    def tell(self) -> int:
        return self._read

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()


class SectionCapture(Capture):
    """The capture of *size* bytes that begins at byte *start* of a file."""

    def __init__(self, path: Path, name: str, start: int, size: int) -> None:
        self._file, self._start, self._size = path, start, size
        super().__init__(f"{path}: {name}")

    def open(self) -> IO[bytes]:
        """Open the file, for its own bytes alone."""
        file = Capture(self._file).open()
        return _Section(file, self._start, self._size)  # type: ignore[return-value]


def captures(path: str | Path) -> list[Capture]:
    """
    The captures in a file, each of one node; a file of one node is a capture itself.

    Raises CaptureError for a file that is neither.
    """
    one = Capture(path)
    with one.open() as file:
        try:
            blocks = Frames(file)
            block = next(iter(blocks), None)
            if block is None or block.kind != BlockKind.CLUSTER:
                return [one]
            return _sections(Path(path), block.payload, blocks.end)
        except CaptureError as error:
            raise CaptureError(f"{path}: {error}") from None
        except OSError as error:
            raise CaptureError(f"cannot read {path}: {error.strerror}") from None


def _sections(path: Path, payload: bytes, start: int) -> list[Capture]:
    made: list[Capture] = []
    for item in document(payload, _FIRST)["captures"].items(MOST_CAPTURES):
        size = item["bytes"].whole(SIGNED)
        made.append(SectionCapture(path, item["name"].text(), start, size))
        start += size
    return made


def write(parts: Sequence[tuple[str, Capture, int]], output: IO[bytes]) -> None:
    """Write captures: name of each, and bytes of its whole blocks. CaptureError, OSError."""
    head = {"captures": [{"name": name, "bytes": size} for name, _, size in parts]}
    output.write(frames.start() + frames.frame(BlockKind.CLUSTER, json.dumps(head).encode()))
    for _, capture, size in parts:
        with capture.open() as file:
            left = size
            while left:
                data = file.read(min(left, _PART))
                if not data:
                    raise CaptureError(f"{capture.path} has become shorter while it was read")
                output.write(data)
                left -= len(data)
