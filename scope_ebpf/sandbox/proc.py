# SPDX-License-Identifier: Apache-2.0
"""Reading files of ``/proc``, whose length and names in them may be another user's choice."""

from __future__ import annotations

import ctypes
import os
import re
import struct

from scope_ebpf.errors import RefusedFileError

#: Bytes of a process's mappings or mounts: 200,000 lines.
MAX_BYTES = 16 << 20
#: include/uapi/linux/stat.h, include/uapi/linux/fcntl.h: struct statx, where the inode lies in it
#: and the device; what is known without asking the filesystem.
_STATX_SIZE, _STATX_INODE, _STATX_DEVICE = 256, 32, 136
_AT_FDCWD, _DONT_SYNC, _INODE = -100, 0x4000, 0x100

_libc = ctypes.CDLL(None, use_errno=True)


def read_bounded(path: str | os.PathLike[str], *, most: int = MAX_BYTES) -> bytes:
    """Read a file of ``/proc``; RefusedFileError if it has more than *most* bytes."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - any path
        parts, left = [], most + 1
        while left > 0 and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise RefusedFileError(f"{os.fspath(path)} has more than {most:,} bytes")
    return b"".join(parts)


def rows(text: bytes) -> list[str]:
    """
    The rows of a text of ``/proc`` or of a cgroup, which end with a newline only.

    A name in them may contain the other characters at which ``str.splitlines`` splits, and the
    carriage return that text mode turns into a newline: it would start a row of its own.
    """
    found = text.decode("utf-8", "replace").split("\n")
    return found[:-1] if not found[-1] else found


def status_number(text: bytes, name: str) -> int | None:
    """The first number in the row *name* of a text such as ``/proc/PID/status``, None without."""
    found = re.search(rb"^%s:[ \t]*(\d+)" % name.encode(), text, re.MULTILINE)
    return int(found[1]) if found else None


def inode_of(path: str) -> tuple[int, int]:
    """
    Device and inode of what *path* leads to, such as ``/proc/PID/exe``; OSError if there is none.

    Unlike stat(2), the kernel answers from what it knows. It does not ask a tenant's filesystem
    (FUSE, below an overlay too), which may block without end, even against SIGKILL.
    """
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _DONT_SYNC, _INODE, found):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    (inode,) = struct.unpack_from("<Q", found, _STATX_INODE)
    return os.makedev(*struct.unpack_from("<II", found, _STATX_DEVICE)), inode
