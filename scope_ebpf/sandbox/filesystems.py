# SPDX-License-Identifier: Apache-2.0
"""
Whether a filesystem answers by itself, or only if a process of another user does.

A process that opens, reads or closes a file of a FUSE server waits for that server, even against
SIGKILL. A breakpoint in such a file is worse: the kernel reads the file while no process of the
host can fork. An overlay in a user namespace hides the owner of its layers, and root may open its
files. So this is found from its path alone (``O_PATH``), by what the kernel knows of its mount.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox.proc import inode_of, read_bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Filesystems that a process serves, and those that lie upon others.
_SERVED = re.compile(rb"fuse(?:blk)?(?:\.|$)")
_STACKED = frozenset((b"overlay", b"ecryptfs", b"shiftfs", b"aufs"))
#: A FUSE server that root started, in the options of its mount.
_ROOTS = b"user_id=0"
#: Where the kernel lists FUSE servers, each as a folder of its user (filesystem fusectl).
_CONNECTIONS = Path("/sys/fs/fuse/connections")
#: include/uapi/linux/nsfs.h, and include/linux/proc_ns.h: the first user namespace.
_NS_GET_USERNS, _FIRST = 0xB701, 0xEFFFFFFD
#: Processes whose mounts are root's, for mounts that another one does not see or may have forged.
_OURS = ("/proc/self", "/proc/1")
#: Columns of a mountinfo: a mount's number, its device. Bytes of a row, and rows, that are read.
_NUMBER, _DEVICE = 0, 2
_MOST_ROW, _MOST_ROWS = 1 << 17, 1 << 20


class _Mount(NamedTuple):
    """A mount in ``/proc/PID/mountinfo``, and by whose permission it is there."""

    kind: bytes
    options: list[bytes]
    by_root: bool


def require_answers(path_fd: int, path: str, process: str) -> None:
    """
    Refuse a file that may lie upon another user's FUSE server, without asking that.

    *path_fd* is a descriptor of it, *process* the folder in ``/proc`` of a process that sees its
    mount. Raises RefusedFileError; OSError if there is no descriptor left.
    """
    if in_user_namespace():
        return  # this process has no more rights than the server of such a mount
    number = _mount_number(path_fd)
    mount = _best(_mount(folder, _NUMBER, b"%d" % number) for folder in (process, *_OURS))
    mount = mount or _of_roots_chroot(process, number)
    if mount is None:
        raise RefusedFileError(f"{path} lies on a filesystem whose mount is not seen any more")
    kind = mount.kind.decode("ascii", "replace")
    if _SERVED.match(mount.kind) and not (mount.by_root and _ROOTS in mount.options):
        raise RefusedFileError(f"{path} lies on a filesystem that a user's process serves ({kind})")
    if mount.kind in _STACKED and not mount.by_root and _may_be_served():
        raise RefusedFileError(
            f"{path} lies on a filesystem of a user namespace ({kind}), and so perhaps upon one "
            "that a user's process serves (FUSE)"
        )


@cache
def in_user_namespace() -> bool:
    """True if this process's rights are those of a user namespace only; OSError if unknown."""
    try:
        # Without a descriptor, of which there may be none left.
        return os.stat("/proc/self/ns/user").st_ino != _FIRST  # noqa: PTH116 - a magic link
    except FileNotFoundError:
        return False  # the kernel has none


def _mount_number(path_fd: int) -> int:
    text = read_bounded(f"/proc/self/fdinfo/{path_fd}")
    found = re.search(rb"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise RefusedFileError("the kernel does not say which mount a file belongs to")
    return int(found[1])


def _best(mounts: Iterable[_Mount | None]) -> _Mount | None:
    """The first that root made; else the first. A mount is the same wherever it is seen."""
    first = None
    for mount in mounts:
        if mount and mount.by_root:
            return mount
        first = first or mount
    return first


@contextmanager
def _held(folder: str) -> Iterator[str]:
    """A path to the process of *folder* that never leads to another one with its number."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _mount(folder: str, column: int, value: bytes) -> _Mount | None:
    """The first mount of a process with this *value* in a *column*."""
    try:
        with _held(folder) as process:
            row = _row(f"{process}/mountinfo", column, value)
            # Asked afterwards: a process that left a namespace cannot enter one of the host's.
            by_root = row is not None and _is_of_root(process)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    if row is None:
        return None
    kind, _, options = row.rstrip(b"\n").partition(b" - ")[2].split(b" ", 2)
    return _Mount(kind, options.split(b","), by_root)


def _row(path: str, column: int, value: bytes) -> bytes | None:
    """
    The row of a mountinfo; reading stops at that row.

    A row that is too long is skipped, with all parts that it is read in.
    """
    begins = True
    with open(path, "rb") as file:  # noqa: PTH123 - a magic link
        for _ in range(_MOST_ROWS):
            row = file.readline(_MOST_ROW)
            if not row:
                break
            whole = begins and row.endswith(b"\n")
            if whole and row.split(b" ", _DEVICE + 1)[column] == value:
                return row
            begins = row.endswith(b"\n")
    return None


def _of_roots_chroot(process: str, number: int) -> _Mount | None:
    """
    Facts of mount *number*, if it has a root directory that only root can have given *process*.

    The kernel does not show the mount of another process's root. Its filesystem is known if it is
    on a disk, or mounted where this process sees it.
    """
    with (
        suppress(FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError),
        _held(process) as held,
    ):
        root = os.open(f"{held}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            same = _mount_number(root) == number
            device, _ = inode_of(f"/proc/self/fd/{root}")
        finally:
            os.close(root)
        # Asked afterwards, as above.
        if not same or not _is_of_root(held):
            return None
        number_text = b"%d:%d" % (os.major(device), os.minor(device))
        mount = _best(_mount(folder, _DEVICE, number_text) for folder in _OURS)
        return mount or (_Mount(b"", [], by_root=True) if os.major(device) else None)
    return None


def _is_of_root(process: str) -> bool:
    """True if a process has the host's mounts and rights."""
    return all(_is_first(Path(process, "ns", name)) for name in ("mnt", "user"))


def _is_first(namespace: Path) -> bool:
    """True if a namespace is the first user namespace, or belongs to it, or there are none."""
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
    """True if a user other than root has a FUSE server, or if that is unknown."""
    if not connections.parent.exists():
        return False  # this kernel has no FUSE
    try:
        if not connections.is_mount():
            return True
        return any(one.stat().st_uid != 0 for one in connections.iterdir())
    except OSError:
        return True
