# SPDX-License-Identifier: Apache-2.0
"""
The process that reads memory for a thread of the daemon: started by ``reader``, which asks it.

    python -I -S reader_child.py CHANNEL SHARED

A page of another process may lie in a file that never comes, such as one of a FUSE server that
does not answer. A process that reads such a page waits, and may not even be killed. So this process
waits, and the one that asked goes on with another child.

It runs without the rest of the package, so that it is small and there at once. The descriptor
SHARED is of memory that both have: the ranges to be read (``struct iovec``), and behind them the
bytes that were read. A request has one answer: the number of bytes, or minus the error number.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys

#: A process, the number of ranges, and their bytes together.
REQUEST = struct.Struct("<iiQ")
#: How many bytes were read, or minus the error number. The first one says that the child is there.
ANSWER = struct.Struct("<q")
#: Bytes of a ``struct iovec``, and of all that one request may have.
IOVEC_BYTES, IOVECS_BYTES = 16, 1024 * 16


class _Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


def serve(channel: int, shared: int) -> None:
    """Answer until *channel* ends; the shared memory lies at *shared*."""
    libc = ctypes.CDLL(None, use_errno=True)
    read = libc.process_vm_readv
    read.restype = ctypes.c_ssize_t
    read.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    local = _Iovec(shared + IOVECS_BYTES, 0)
    where = ctypes.addressof(local)
    got = 0
    while True:
        os.write(channel, ANSWER.pack(got))
        request = os.read(channel, REQUEST.size)
        if not request:
            return
        pid, count, local.length = REQUEST.unpack(request)
        got = read(pid, where, 1, shared, count, 0)
        if got < 0:
            got = -ctypes.get_errno()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _shared = mmap.mmap(int(sys.argv[2]), 0)
    with contextlib.suppress(ConnectionError):  # the process that asked has gone
        serve(int(sys.argv[1]), ctypes.addressof(ctypes.c_char.from_buffer(_shared)))
