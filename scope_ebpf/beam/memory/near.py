# SPDX-License-Identifier: Apache-2.0
"""
Reads structs that lie near each other together.

The VM allocates structs of one kind side by side, and what one call of process_vm_readv copies at
once costs half of what it takes to copy it struct by struct (bench/genservers.py million).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from scope_ebpf.beam.memory import process_memory
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.memory.process_memory import Memory

_Number = TypeVar("_Number", bound=np.generic)
#: Bytes between two structs that are read too, at most; ranges for each struct from which on there
#: is no use in reading them together.
_GAP, _USEFUL = 1024, 0.5
_WORD = 8


class Structs(NamedTuple):
    """Structs in *data*, shape ``(bytes,)``: in which word each begins, and which were read."""

    data: NDArray[np.uint8]
    words: NDArray[np.int64]
    size: int
    read: NDArray[np.bool_]

    def column(self, offset: int, kind: type[_Number]) -> NDArray[_Number]:
        """
        Copy one field of each struct, shape ``(n,)``.

        Raises ReadRefusedError for a field that does not lie in them, or where none can be.
        """
        size = np.dtype(kind).itemsize
        if not 0 <= offset <= self.size - size or offset % size:
            raise ReadRefusedError(
                f"a field of {size} bytes at {offset} does not lie in a struct of {self.size} bytes"
            )
        starts = self.words if size == _WORD else self.words * (_WORD // size)
        found: NDArray[_Number] = self.data.view(kind)[offset // size :].take(starts)
        return found


def structs(memory: Memory, addresses: NDArray[np.uint64], size: int) -> Structs:
    """
    Read *size* bytes at each of the *addresses*, multiples of 8.

    What is read of a struct that could not be read whole is zero.
    """
    size = -(-size // _WORD) * _WORD
    if len(addresses) > 1:
        ordered = np.sort(addresses)
        far = np.ones(len(ordered), np.bool_)
        far[1:] = ordered[1:] - ordered[:-1] > size + _GAP
        first = np.flatnonzero(far)
        begins = ordered[first]
        ends = np.empty_like(begins)
        ends[:-1], ends[-1] = ordered[first[1:] - 1], ordered[-1]
        ends += np.uint64(size)
        most = _USEFUL * len(ordered)
        if len(first) <= most and int((ends - begins).sum()) <= process_memory.MAX_READ:
            failures = memory.failures
            data, read = memory.gather_flat(begins, ends - begins)
            if read.all():
                behind = np.cumsum(ends - begins, dtype=np.uint64)
                of = np.searchsorted(begins, addresses, side="right") - 1
                words = (addresses - ends[of] + behind[of]) // np.uint64(_WORD)
                every = np.ones(len(addresses), np.bool_)
                return Structs(data, words.astype(np.int64), size, every)
            # Those are found below that can be read; what cannot counts once.
            memory.failures = failures
    raw, read = memory.gather(addresses, size)
    return Structs(
        raw.reshape(-1), np.arange(len(addresses), dtype=np.int64) * (size // _WORD), size, read
    )
