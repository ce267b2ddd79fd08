# SPDX-License-Identifier: Apache-2.0
"""
    overlay_fs.py USER DEVICE FOLDER PROGRAM: run PROGRAM from an overlay over one's own filesystem.

As USER, without any privilege but that of a user namespace: a FUSE server (DEVICE is /dev/fuse)
gives PROGRAM to who runs it, and no other process gets an answer. Root may not open a file of that
filesystem, but one of an overlay over it. What PROGRAM prints comes out, behind its process
number; all ends with this process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
OPENDIR, BATCH_FORGET, STATFS = 27, 42, 17
CLONE_NEWNS, CLONE_NEWUSER, PR_SET_DUMPABLE = 0x20000, 0x10000000, 4
PR_SET_PDEATHSIG = 1
REQUEST = struct.Struct("<IIQQIIIHH")
ANSWER = struct.Struct("<IiQ")
#: ``struct fuse_read_in``: the handle, the offset, the size.
ASKED = struct.Struct("<QQI")
FOR_EVER = 1 << 30
#: Seconds after which it ends by itself, and processes that wait for it go on.
LIFE = 60

_libc = ctypes.CDLL(None, use_errno=True)


def attributes(inode: int, size: int) -> bytes:
    """
    ``struct fuse_attr``: 1 is the folder, and all else the file.
    """
    mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o755
    return struct.pack("<6Q10I", inode, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(code: int, inode: int, rest: bytes, contents: bytes) -> bytes | int | None:
    """
    What a request is answered with, an error's number, or nothing.
    """
    if code == LOOKUP and rest != b"program\0":
        return errno.ENOENT
    if code == READ:
        _, offset, size = ASKED.unpack_from(rest)
        return contents[offset : offset + size]
    found = {
        INIT: struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7),
        LOOKUP: struct.pack("<4Q2I", 2, 0, FOR_EVER, 0, 0, 0) + attributes(2, len(contents)),
        GETATTR: struct.pack("<Q2I", 0, 0, 0) + attributes(inode, len(contents)),
        STATFS: struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7),
        **dict.fromkeys((OPEN, OPENDIR), struct.pack("<Q2I", 0, 0, 0)),
        **dict.fromkeys((RELEASE, FLUSH), b""),
        **dict.fromkeys((FORGET, BATCH_FORGET), None),
    }
    return found.get(code, errno.ENOSYS)


def serve(device: int, contents: bytes, ours: set[int]) -> None:
    """
    Answer those whose process is one of *ours*, and the kernel.
    """
    while True:
        request = os.read(device, 1 << 17)
        _, code, unique, inode, _, _, pid, *_ = REQUEST.unpack_from(request)
        if pid not in ours and pid != 0:
            continue
        found = answer(code, inode, request[REQUEST.size :], contents)
        if isinstance(found, int):
            os.write(device, ANSWER.pack(ANSWER.size, -found, unique))
        elif found is not None:
            os.write(device, ANSWER.pack(ANSWER.size + len(found), 0, unique) + found)


def mount(source: str, folder: Path, kind: str, options: str) -> None:
    """
    mount(2).
    """
    words = (source.encode(), str(folder).encode(), kind.encode())
    if _libc.mount(*words, 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}")


def run(folder: Path, go: int) -> None:
    """
    Mount the overlay, and become the program.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.read(go, 1)
    for name in ("up", "work", "over"):
        (folder / name).mkdir()
    layers = f"lowerdir={folder}/low,upperdir={folder}/up,workdir={folder}/work,userxattr"
    mount("over", folder / "over", "overlay", layers)
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    os.execv(folder / "over" / "program", ["program"])


def become(user: int) -> None:
    """
    Be *user*, in a user namespace and a mount namespace of its own.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or the maps were root's
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    for kind in ("uid", "gid"):
        Path(f"/proc/self/{kind}_map").write_text(f"0 {user} 1")


def main(user: str, device: str, mount_point: str, program: str) -> None:
    """
    Mount, start the program and serve.
    """
    become(int(user))
    signal.alarm(LIFE)
    contents, folder = Path(program).read_bytes(), Path(mount_point)
    mount("none", folder, "tmpfs", "")
    (folder / "low").mkdir()
    server = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    mount("silent", folder / "low", "fuse.silent", options)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LIFE)
        run(folder, ready)
    os.write(go, b"g")
    serve(server, contents, {child})


if __name__ == "__main__":
    main(*sys.argv[1:])
