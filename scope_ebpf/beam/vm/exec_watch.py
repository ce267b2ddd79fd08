# SPDX-License-Identifier: Apache-2.0
"""
Detects that a process has executed another program.

Neither a pid nor a pidfd does: both go on through an exec. A perf event on the process's first
thread that the kernel removes at an exec (``remove_on_exec``, Linux 5.13) reports an exec by any
thread: the thread that executes becomes the first one, or is it. The kernel removes it
before ``process_vm_readv`` can reach the new program's memory (``exec_update_lock``), so what was
read while the event was there is of the program that it was opened for.

On older kernels, or where perf events are not permitted, the memory of the program is held
(``/proc/PID/mem``): it can be read until the last process that uses it has ended or executed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
from typing import Protocol

from scope_ebpf.errors import LOOK, NoSuchProcessError, NotPermittedError

#: ``perf_event_open`` by machine (asm/unistd.h): the C library has no function for it.
_SYSCALL = {"x86_64": 298, "aarch64": 241}
#: include/uapi/linux/perf_event.h: struct perf_event_attr up to PERF_ATTR_SIZE_VER0.
_ATTRIBUTES = struct.Struct("<IIQQQQQIIQ")
_TYPE_SOFTWARE, _SW_DUMMY = 1, 9
_EXCLUDE_KERNEL, _EXCLUDE_HV, _REMOVE_ON_EXEC = 1 << 5, 1 << 6, 1 << 36
_FLAG_FD_CLOEXEC = 1 << 3
#: The kernel's own page of a perf event and one of data: without them poll(2) always says HUP.
_PAGES = 2 * mmap.PAGESIZE
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class ExecWatch(Protocol):
    """Watches one process from its creation on."""

    @property
    def descriptor(self) -> int | None:
        """Descriptor: poll(2) reports POLLHUP after an exec or the end; None without one."""

    def happened(self) -> bool:
        """Whether the process has executed a program since, or has ended."""

    def close(self) -> None:
        """Release it."""


class EventWatch:
    """Exact: a perf event of process *pid*. OSError where the kernel has or permits none."""

    def __init__(self, pid: int) -> None:
        self._fd = fd = _open_event(pid)
        try:
            page = _libc.mmap(None, _PAGES, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
            if page == _MAP_FAILED:
                raise _last_error()
        except OSError:
            os.close(fd)
            raise
        self._close = weakref.finalize(self, _give_back, fd, page)

    @property
    def descriptor(self) -> int:
        """See ExecWatch."""
        return self._fd

    def happened(self) -> bool:
        """Learns of it by the descriptor alone."""
        return False

    def close(self) -> None:
        """See ExecWatch."""
        self._close()


class MemoryWatch:
    """Held memory of process *pid*: a second process that shares it hides an exec."""

    descriptor = None

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise NotPermittedError(f"process {pid} may not be looked into: {LOOK}") from None
        except (FileNotFoundError, ProcessLookupError):
            raise NoSuchProcessError(f"process {pid} has ended") from None
        self._close = weakref.finalize(self, os.close, self._fd)

    def happened(self) -> bool:
        """See ExecWatch."""
        try:
            return not os.pread(self._fd, 1, 0)
        except OSError:
            return False  # nothing lies at address 0, but there is a memory

    def close(self) -> None:
        """See ExecWatch."""
        self._close()


def watch_execs(pid: int) -> ExecWatch:
    """Watch *pid* as well as the kernel allows. NoSuchProcessError, NotPermittedError."""
    try:
        return EventWatch(pid)
    except OSError:
        return MemoryWatch(pid)


def _open_event(pid: int) -> int:
    flags = _EXCLUDE_KERNEL | _EXCLUDE_HV | _REMOVE_ON_EXEC
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(_TYPE_SOFTWARE, _ATTRIBUTES.size, _SW_DUMMY, 0, 0, 0, flags, 0, 0, 0)
    )
    fd: int = _libc.syscall(
        ctypes.c_long(_SYSCALL.get(os.uname().machine, -1)),
        attributes,
        ctypes.c_int(pid),
        ctypes.c_int(-1),
        ctypes.c_int(-1),
        ctypes.c_ulong(_FLAG_FD_CLOEXEC),
    )
    if fd < 0:
        raise _last_error()
    return fd


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _give_back(fd: int, page: int) -> None:
    _libc.munmap(page, _PAGES)
    os.close(fd)
