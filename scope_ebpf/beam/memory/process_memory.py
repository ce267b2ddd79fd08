# SPDX-License-Identifier: Apache-2.0
"""
Another process's memory, read and never written (``process_vm_readv``).

Works on a process that runs, hangs or is stopped; the process does not notice.
What cannot be read is counted and reported, never made up.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from scope_ebpf.beam.memory import look_limits
from scope_ebpf.errors import (
    LOOK,
    NoSuchProcessError,
    NotPermittedError,
    ReadRefusedError,
    RefusedFileError,
)
from scope_ebpf.sandbox import client
from scope_ebpf.sandbox.proc import read_bounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.identity import Process

#: Vectors that the kernel takes in one call (UIO_MAXIOV, limits.h IOV_MAX).
IOV_MAX = 1024
#: No single reading is larger: a length that was read from the target may be anything.
MAX_READ = 1 << 28

_IOVEC = np.dtype([("base", "<u8"), ("length", "<u8")])
_WORD, _PAGE_BITS = 8, 12


class _Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)


class ProcessReader(Protocol):
    """Reads memory of other processes."""

    def read(self, pid: int, out: int, size: int, iovecs: int, count: int, /) -> int:
        """
        Fill the *size* bytes at *out* from the *count* ``iovec`` at *iovecs*, which are of *pid*.

        Returns the number of bytes read, or minus the error number.
        """

    def cpu_seconds(self) -> float:
        """CPU seconds of this thread, and of the process that reads for it."""


class _Directly:
    """Reads in this thread, which may block."""

    def read(self, pid: int, out: int, size: int, iovecs: int, count: int, /) -> int:
        local = _Iovec(out, size)
        got: int = _libc.process_vm_readv(pid, ctypes.byref(local), 1, iovecs, count, 0)
        return got if got >= 0 else -ctypes.get_errno()

    def cpu_seconds(self) -> float:
        return time.thread_time()


class _Current:
    """The reader that this process uses."""

    reader: ProcessReader = _Directly()


def read_by(reader: ProcessReader) -> None:
    """Read all memory by *reader* from now on, in every thread."""
    _Current.reader = reader


def cpu_seconds() -> float:
    """CPU time of this thread, and of the processes that read memory and parse files for it."""
    return _Current.reader.cpu_seconds() + client.cpu_seconds()


#: Bounds of a readable mapping in ``/proc/PID/maps``; seconds for which they count as known.
_MAPPING, _MAPPED = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) r", re.MULTILINE), 0.02
_Number = TypeVar("_Number", bound=np.generic)


def column(rows: NDArray[np.uint8], offset: int, kind: type[_Number]) -> NDArray[_Number]:
    """
    Copy one field of many structs, shape ``(n,)`` for rows of shape ``(n, size)``.

    Raises ReadRefusedError for a field that does not lie in them.
    """
    end = offset + np.dtype(kind).itemsize
    if not 0 <= offset < end <= rows.shape[1]:
        raise ReadRefusedError(
            f"a field in bytes {offset} to {end} does not lie in a struct of {rows.shape[1]} bytes"
        )
    # Whole words are copied twice as fast as their bytes.
    return rows[:, offset:end].view(kind)[:, 0].copy()


def word_iovecs(addresses: NDArray[np.uint64]) -> NDArray[np.void]:
    """Make the ``iovec`` of words, for :meth:`Memory.words_at`, which reads them repeatedly."""
    iovecs = np.empty(len(addresses), _IOVEC)
    iovecs["base"], iovecs["length"] = addresses, _WORD
    return iovecs


def _never() -> bool:
    """A process without a check of identity is taken for the one it was."""
    return False


class UnreadableMemoryError(ReadRefusedError):
    """The target has no memory at the address, or not any more."""


class Memory:
    """
    The memory of process *pid*, to be read by one thread.

    With *process* it is that of the program that this was made for: each reading is followed by a
    check that it still runs, and refused if not. That takes one or two of the seven microseconds
    of the shortest reading.

    *bytes_read*, *calls* and *failures* (addresses that could not be read) only
    grow; they are what a reading cost and what it is missing.
    """

    def __init__(self, pid: int, process: Process | None = None) -> None:
        self.pid = pid
        self._process = process
        self._is_other = process.poller() if process else _never
        #: Until when the bounds of its mappings count as known, and they.
        self._mapped: tuple[float, NDArray[np.uint64]] = (0.0, np.empty((0, 2), np.uint64))
        self.bytes_read = 0
        self.calls = 0
        self.failures = 0

    def read(self, address: int, size: int) -> bytes:
        """
        Read *size* bytes, all of them.

        Raises UnreadableMemoryError for an address that is not mapped,
        NoSuchProcessError and NotPermittedError.
        """
        if not 0 <= size <= MAX_READ:
            self.failures += 1
            raise UnreadableMemoryError(f"a reading of {size} bytes at {address:#x} is refused")
        out = self._read(address & 0xFFFFFFFFFFFFFFFF, size)
        self.bytes_read += len(out)
        if len(out) != size:
            self.failures += 1
            raise UnreadableMemoryError(
                f"process {self.pid} has no {size} bytes of memory at {address:#x}"
            )
        return out

    def u16(self, address: int) -> int:
        """Read an unsigned 16-bit number."""
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        """Read an unsigned 32-bit number."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """Read an unsigned 64-bit number, or a pointer."""
        return int.from_bytes(self.read(address, 8), "little")

    def words(self, address: int, count: int) -> NDArray[np.uint64]:
        """Read *count* 64-bit words, shape ``(count,)``."""
        return np.frombuffer(self.read(address, 8 * count), np.uint64)

    def words_at(self, iovecs: NDArray[np.void]) -> NDArray[np.uint64]:
        """
        Read the 64-bit words at :func:`word_iovecs`, shape ``(n,)``; all of them or none.

        Raises UnreadableMemoryError if one cannot be read.
        """
        out = np.empty(len(iovecs), np.uint64)
        for first in range(0, len(iovecs), IOV_MAX):
            part = iovecs[first : first + IOV_MAX]
            got = self._readv(out[first : first + len(part)].view(np.uint8), part)
            self.bytes_read += got
            if got != _WORD * len(part):
                self.failures += 1
                address = int(part["base"][got // _WORD])
                raise UnreadableMemoryError(f"process {self.pid} has no memory at {address:#x}")
        return out

    def gather(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """
        Read *size* bytes at each of the *addresses*.

        Returns the bytes, shape ``(n, size)``, and which rows were read, shape
        ``(n,)``; a row that was not read is all zero and counted in *failures*.
        """
        count = len(addresses)
        if size * count > MAX_READ:
            raise UnreadableMemoryError(f"a reading of {count} times {size} bytes is refused")
        out = np.empty((count, size), np.uint8)
        sizes = np.full(count, size, np.uint64)
        good = self._gather(np.ascontiguousarray(addresses, np.uint64), sizes, out.reshape(-1))
        out[~good] = 0
        return out, good

    def scattered(
        self, addresses: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """
        Read the words at *addresses*, by whole pages, and which were read.

        Faster than :meth:`gather` where there are two or more in most pages, because the kernel
        takes as long for a word as for half a page. An address that is no multiple of 8 is refused.
        """
        pages, inverse = np.unique(addresses >> np.uint64(_PAGE_BITS), return_inverse=True)
        first = np.flatnonzero(np.diff(pages, prepend=pages[:1] + np.uint64(2)) != 1)
        counts = np.diff(np.append(first, len(pages))).astype(np.uint64)
        starts = pages[first] << np.uint64(_PAGE_BITS)
        raw, read = self.gather_flat(starts, counts << np.uint64(_PAGE_BITS))
        within = (addresses & np.uint64((1 << _PAGE_BITS) - 1)).astype(np.int64)
        inverse = inverse.reshape(-1)
        places = (inverse << _PAGE_BITS) + within
        good = np.repeat(read, counts.astype(np.int64))[inverse] & (within % _WORD == 0)
        words = raw.view(np.uint64)[places // _WORD]
        words[~good] = 0
        return words, good

    def gather_ragged(
        self, addresses: NDArray[np.uint64], sizes: NDArray[np.uint64]
    ) -> tuple[list[bytes], NDArray[np.bool_]]:
        """Read ranges of different sizes; ``b""`` for one that was not read."""
        out, good = self.gather_flat(addresses, sizes)
        data, ends = out.tobytes(), np.cumsum(sizes).tolist()
        starts = [0, *ends][: len(ends)]
        return [
            data[start:end] if ok else b""
            for start, end, ok in zip(starts, ends, good.tolist(), strict=True)
        ], good

    def gather_flat(
        self, addresses: NDArray[np.uint64], sizes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """
        Read ranges of different sizes into one array, one after the other, and which were read.

        What stands there of a range that was not read has no meaning.
        """
        sizes = np.ascontiguousarray(sizes, np.uint64)
        if len(sizes) and (int(sizes.max()) > MAX_READ or int(sizes.sum()) > MAX_READ):
            raise UnreadableMemoryError(f"a reading of {len(sizes)} ranges is too large")
        out = np.empty(int(sizes.sum()), np.uint8)
        good = self._gather(np.ascontiguousarray(addresses, np.uint64), sizes, out)
        return out, good

    def mapped(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """
        Which of *addresses* were in readable memory some milliseconds ago; all, if nobody knows.

        Of words that may be no pointers: each that leads nowhere costs a system call of its own.
        """
        until, bounds = self._mapped
        if self._process is not None and time.monotonic() >= until:
            bounds = self._bounds()
            self._mapped = time.monotonic() + _MAPPED, bounds
        if not len(bounds):
            return np.ones(len(addresses), np.bool_)
        index = np.searchsorted(bounds[:, 0], addresses, side="right") - 1
        inside: NDArray[np.bool_] = (index >= 0) & (addresses < bounds[index, 1])
        return inside

    def _bounds(self) -> NDArray[np.uint64]:
        """Start and end of each readable mapping, in order, shape ``(n, 2)``."""
        try:
            text = read_bounded(f"/proc/{self.pid}/maps")
        except (OSError, RefusedFileError):
            return np.empty((0, 2), np.uint64)
        look_limits.spend(len(text))
        found = [(int(start, 16), int(end, 16)) for start, end in _MAPPING.findall(text)]
        return np.array(found, np.uint64).reshape(-1, 2)

    def _gather(
        self, addresses: NDArray[np.uint64], sizes: NDArray[np.uint64], out: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """
        Fill *out* with the ranges one after the other; return which were read.

        The kernel stops at the first range that it cannot read, somewhere
        within it. That one is left out and the reading goes on behind it.
        """
        good = np.zeros(len(addresses), np.bool_)
        remote = np.empty(len(addresses), _IOVEC)
        remote["base"], remote["length"] = addresses, sizes
        ends = np.cumsum(sizes, dtype=np.int64)
        first = start = 0
        while first < len(addresses):
            last = min(first + IOV_MAX, len(addresses))
            end = int(ends[last - 1])
            got = self._readv(out[start:end], remote[first:last])
            self.bytes_read += got
            if got == end - start:
                good[first:last] = True
                first, start = last, end
                continue
            whole = int(np.searchsorted(ends[first:last], start + got, side="right"))
            good[first : first + whole] = True
            self.failures += 1
            start = int(ends[first + whole])
            first += whole + 1
        return good

    def _read(self, address: int, size: int) -> bytes:
        """Read what is there, without numpy: for a word numpy takes longer than the call."""
        out, iovec = ctypes.create_string_buffer(size), _Iovec(address, size)
        got = self._call(ctypes.addressof(out), size, ctypes.addressof(iovec), 1)
        return out.raw[:got]

    def _readv(self, out: NDArray[np.uint8], remote: NDArray[np.void]) -> int:
        return self._call(out.ctypes.data, len(out), remote.ctypes.data, len(remote))

    def _call(self, out: int, size: int, iovecs: int, count: int) -> int:
        """Fill the *size* bytes at *out* from *count* ranges; return the number of bytes read."""
        self.calls += 1
        got = _Current.reader.read(self.pid, out, size, iovecs, count)
        if self._process is not None and self._is_other():
            self._process.check()
        if got >= 0:
            look_limits.spend(got)
            return got
        look_limits.spend(0)
        code = -got
        if code == errno.ESRCH:
            raise NoSuchProcessError(f"process {self.pid} has ended")
        if code == errno.EPERM:
            raise NotPermittedError(
                f"the memory of process {self.pid} may not be read by this user: {LOOK}"
            )
        # EFAULT: the first range is not mapped. EINVAL: a length beyond all bounds.
        if code in (errno.EFAULT, errno.EINVAL):
            return 0
        raise ReadRefusedError(f"reading process {self.pid} failed: {os.strerror(code)}")
