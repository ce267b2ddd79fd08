# SPDX-License-Identifier: Apache-2.0
"""
    silent_fs.py FOLDER: a filesystem with one file, ``page``, whose contents never come.

It is mounted at FOLDER when it says "mounted", and ends with this process, which is a FUSE server
(include/uapi/linux/fuse.h) that does not answer who reads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
REQUEST = struct.Struct("<IIQQIIIHH")
ANSWER = struct.Struct("<IiQ")
#: FOPEN_KEEP_CACHE: without it who opens the file waits for the page that another one reads.
KEEP_CACHE = 2
FOR_EVER, SIZE = 1 << 30, 1 << 20
#: Seconds after which it ends by itself, and processes that wait for it go on.
LIFE = 120


def attributes(inode: int) -> bytes:
    """
    ``struct fuse_attr``: 1 is the folder, and all else the file.
    """
    mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o444
    return struct.pack("<6Q10I", inode, SIZE, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(code: int, inode: int) -> bytes | int | None:
    """
    What a request is answered with, an error's number, or nothing.
    """
    if code == INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7)
    if code == LOOKUP:
        return struct.pack("<4Q2I", 2, 0, FOR_EVER, FOR_EVER, 0, 0) + attributes(2)
    if code == GETATTR:
        return struct.pack("<Q2I", FOR_EVER, 0, 0) + attributes(inode)
    if code == OPEN:
        return struct.pack("<Q2I", 0, KEEP_CACHE, 0)
    if code == RELEASE:
        return b""
    return None if code in (READ, FORGET) else errno.ENOSYS


def main(folder: str) -> None:
    signal.alarm(LIFE)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", folder.encode(), b"fuse.silent", 6, options):
        raise OSError(ctypes.get_errno(), "mount")
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    while True:
        request = os.read(device, 1 << 17)
        _, code, unique, inode, *_ = REQUEST.unpack_from(request)
        found = answer(code, inode)
        if isinstance(found, int):
            os.write(device, ANSWER.pack(ANSWER.size, -found, unique))
        elif found is not None:
            os.write(device, ANSWER.pack(ANSWER.size + len(found), 0, unique) + found)


if __name__ == "__main__":
    main(sys.argv[1])
