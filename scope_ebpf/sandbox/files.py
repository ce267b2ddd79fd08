# SPDX-License-Identifier: Apache-2.0
"""
Opening files whose paths, or whose contents, another user chose.

A file is first opened as a path only (``O_PATH``), which runs nothing of a device, a FIFO or a
terminal. What is no regular file, too large, or on a filesystem that another user's process may
serve (``filesystems``) is refused there; only then it is opened for reading. A lease on it does
not block the open (``O_NONBLOCK``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox.filesystems import require_answers

#: A program or library is smaller, holes included.
MAX_PROGRAM = 4 << 30
#: A file of debug symbols is smaller.
MAX_DEBUG_FILE = 512 << 20

_OPENAT2 = 437  # of every architecture
#: include/uapi/linux/openat2.h.
_HOW = struct.Struct("<QQQ")
_NO_MAGICLINKS, _IN_ROOT = 0x02, 0x10
#: openat2 gives up when something is renamed meanwhile.
_TRIES = 16
_READ = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC

_PROCESS = re.compile(r"/proc/\d+(?=/)")

_libc = ctypes.CDLL(None, use_errno=True)


def open_regular(folder_fd: int, path: str, *, most: int, process: str = "/proc/self") -> int:
    """
    Open *path* below *folder_fd*, as if that were the root: no link leads out of it.

    Returns a descriptor for reading. *process* is the folder of a process that sees the mount.
    Raises RefusedFileError for what is no regular file of at most *most* bytes or may never answer,
    OSError as the kernel says it (nothing there, no permission).
    """
    return _reopened(_path_fd(folder_fd, path), path, process, most)


def open_magic(path: str | os.PathLike[str], *, most: int = MAX_PROGRAM) -> int:
    """
    Open what a link of ``/proc`` leads to, such as ``/proc/PID/exe``; as :func:`open_regular`.

    Only for paths that no other user chose.
    """
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    return _reopened(path_fd, os.fspath(path), _process_of(path), most)


def status_of(path: str | os.PathLike[str]) -> os.stat_result:
    """
    As stat(2) of such a path; only files of filesystems that answer by themselves.

    Raises RefusedFileError and OSError.
    """
    path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        require_answers(path_fd, os.fspath(path), _process_of(path))
        return os.fstat(path_fd)
    finally:
        os.close(path_fd)


def _path_fd(folder_fd: int, path: str) -> int:
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGICLINKS)
    code = errno.EAGAIN
    for _ in range(_TRIES):
        fd: int = _libc.syscall(_OPENAT2, folder_fd, os.fsencode(path), how, len(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), path)


def _process_of(path: str | os.PathLike[str]) -> str:
    """The folder in ``/proc`` of the process whose link *path* is, or else of this process."""
    found = _PROCESS.match(os.fspath(path))
    return found[0] if found else "/proc/self"


def _reopened(path_fd: int, path: str, process: str, most: int) -> int:
    """Open the file of *path_fd* for reading, if it is a regular one; closes *path_fd*."""
    try:
        require_answers(path_fd, path, process)
        found = os.fstat(path_fd)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedFileError(f"{path} is no regular file")
        if found.st_size > most:
            raise RefusedFileError(f"{path} has {found.st_size:,} bytes, at most {most:,} are read")
        fd = os.open(f"/proc/self/fd/{path_fd}", _READ)
    finally:
        os.close(path_fd)
    opened = os.fstat(fd)
    if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino):
        os.close(fd)
        raise RefusedFileError(f"{path} is another file than it was")
    return fd
