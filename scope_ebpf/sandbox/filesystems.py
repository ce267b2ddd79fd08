# SPDX-License-Identifier: Apache-2.0
"""
Whether a filesystem answers by itself, or only if a process of another user does.

Who opens, reads or closes a file of a FUSE server waits for that server, against SIGKILL as well. A
breakpoint in such a file is worse: the kernel reads the file while no process of the host
can fork. An overlay in a user namespace hides whose its layers are, and root may open its files.
So this is found out of the place alone (``O_PATH``), from what the kernel knows of its mount.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import NamedTuple

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox.proc import read_bounded

#: Filesystems that a process serves, and those that lie upon others.
_SERVED = re.compile(rb"fuse(?:blk)?(?:\.|$)")
_STACKED = frozenset((b"overlay", b"ecryptfs", b"shiftfs", b"aufs"))
#: A FUSE server that root started, in the options of its mount.
_ROOTS = b"user_id=0"
#: Where the kernel lists FUSE servers, each as a folder of its user (filesystem fusectl).
_CONNECTIONS = Path("/sys/fs/fuse/connections")
#: include/uapi/linux/nsfs.h, and include/linux/proc_ns.h: the first user namespace.
_NS_GET_USERNS, _FIRST = 0xB701, 0xEFFFFFFD


class _Mount(NamedTuple):
    """What ``/proc/PID/mountinfo`` says of a mount, and by whose permission it is there."""

    kind: bytes
    options: list[bytes]
    by_root: bool


def require_answers(place: int, path: str, process: str) -> None:
    """
    Refuse a file that may lie upon another user's FUSE server, without asking that.

    *place* is a descriptor of it, *process* the folder in ``/proc`` of who sees its mount. Raises
    RefusedFileError.
    """
    if in_user_namespace():
        return  # we have no more rights than whoever may serve here
    number = _mount_number(place)
    for folder in dict.fromkeys((process, "/proc/self", "/proc/1")):
        mount = _mount(folder, number)
        if mount:
            break
    else:
        if _is_roots_chroot(process, number):
            return
        raise RefusedFileError(f"{path} lies on a filesystem whose mount is not seen any more")
    kind = mount.kind.decode("ascii", "replace")
    if _SERVED.match(mount.kind) and not (mount.by_root and _ROOTS in mount.options):
        raise RefusedFileError(f"{path} lies on a filesystem that a user's process serves ({kind})")
    if mount.kind in _STACKED and not mount.by_root and _may_be_served():
        raise RefusedFileError(
            f"{path} lies on a filesystem of a user namespace ({kind}), and so perhaps upon one "
            "that a user's process serves (FUSE)"
        )


def in_user_namespace() -> bool:
    """Whether our rights are those of a user namespace, and not of the host."""
    return not _is_first(Path("/proc/self/ns/user"))


def _mount_number(place: int) -> int:
    text = read_bounded(f"/proc/self/fdinfo/{place}")
    found = re.search(rb"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise RefusedFileError("the kernel does not tell which mount a file belongs to")
    return int(found[1])


def _mount(folder: str, number: int) -> _Mount | None:
    try:
        text = read_bounded(f"{folder}/mountinfo")
    except OSError:
        return None
    found = re.search(rb"^%d .*? - (\S+) .*?(\S+)$" % number, text, re.MULTILINE)
    if found is None:
        return None
    # Asked afterwards: who may leave a namespace cannot enter one of the host's.
    by_root = _is_first(Path(folder, "ns/mnt"))
    return _Mount(found[1], found[2].split(b","), by_root)


def _is_roots_chroot(process: str, number: int) -> bool:
    """
    Whether mount *number* has the root of a process to which only root can have given it.

    Of a process with another root the kernel does not tell the mount on which that lies.
    """
    try:
        root = os.open(f"{process}/root", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        same = _mount_number(root) == number
    finally:
        os.close(root)
    # Asked afterwards, as above.
    return same and all(_is_first(Path(process, "ns", name)) for name in ("mnt", "user"))


def _is_first(namespace: Path) -> bool:
    """Whether a namespace is the first of users, or belongs to that; so do all where none is."""
    try:
        with namespace.open("rb", buffering=0) as file:
            if namespace.name == "user":
                return os.fstat(file.fileno()).st_ino == _FIRST
            owner = fcntl.ioctl(file, _NS_GET_USERNS)
    except FileNotFoundError:
        return not os.path.exists("/proc/self/ns/user")  # noqa: PTH110 - the kernel has none
    except OSError:
        return False
    try:
        return os.fstat(owner).st_ino == _FIRST
    finally:
        os.close(owner)


def _may_be_served(connections: Path = _CONNECTIONS) -> bool:
    """Whether anybody but root has a FUSE server, or that is not shown; it is as long as used."""
    if not connections.parent.exists():
        return False  # this kernel has no FUSE
    try:
        if not connections.is_mount():
            return True
        return any(one.stat().st_uid != 0 for one in connections.iterdir())
    except OSError:
        return True
