# SPDX-License-Identifier: Apache-2.0
"""
Files that commands write: made anew, for one user alone, and never through a link.

Commands run as root and write to folders that may belong to others. So each file is created
exclusively under a name that cannot be foreseen, readable for its owner only, and renamed to the
name that was asked for: a link of that name is refused, and one that comes later is replaced, not
followed. This holds for the last part of a path; users who may change the folders before it decide
where they lead.

A :class:`Document` takes its name when it is whole, a :func:`stream` before its first byte, so
that it can be read while it grows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import stat
from typing import IO, TYPE_CHECKING, Self

from scope_ebpf import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODE = 0o600
#: Bytes of the asked name that a temporary name contains: a name may have 255.
_NAME_BYTES = 200
#: Paths of this process's descriptors. These links may be followed: the user who started the
#: command has opened the files.
_OWN = re.compile(
    r"/dev/(?:std(?P<name>out|err)|fd/(?P<fd>\d{1,6}))|/proc/self/fd/(?P<proc>\d{1,6})"
)
_STANDARD = {"out": 1, "err": 2}


class Document:
    """
    A file that is at *path* when it is whole, or not at all.

    A context manager, which discards the file unless :meth:`commit` was called. A device or a pipe
    (``/dev/null``) is written to at once. Raises OSError, also for paths that must not be
    replaced: a link, a folder, without *force* a file of another user.
    """

    def __init__(self, path: str, *, force: bool = False) -> None:
        self._fresh: _Fresh | None = None
        fd = _special(path, force=force)
        if fd is None:
            self._fresh = _Fresh(path, force=force)
            fd = self._fresh.fd
        #: Where to write.
        self.file: IO[bytes] = pipes.open_binary(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of a write that has failed before
            self.file.close()
        if self._fresh:
            self._fresh.close()

    def commit(self) -> None:
        """Give the file its name; raises OSError, also if it could not be written."""
        self.file.flush()
        if self._fresh:
            os.fsync(self.file.fileno())
            self._fresh.rename()
        self.file.close()


def stream(path: str, *, force: bool = False) -> int:
    """
    Descriptor of an empty file at *path* that is written in place; see :class:`Document`.

    A file that was there before is gone. A pipe must have a reader.
    """
    fd = _special(path, force=force)
    if fd is not None:
        return fd
    fresh = _Fresh(path, force=force)
    try:
        fresh.rename()
    except BaseException:
        os.close(fresh.fd)
        raise
    finally:
        fresh.close()
    return fresh.fd


def set_aside(path: str, *, force: bool = False) -> str | None:
    """
    Rename a file that is at *path* and not empty, to that name and ``.old``; the new path.

    Raises OSError if it must not be replaced, see :class:`Document`.
    """
    if _OWN.fullmatch(path):
        return None
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.lstat(name or ".", dir_fd=fd)
        _require_ours(found, force=force)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return None
        os.rename(name, f"{name}.old", src_dir_fd=fd, dst_dir_fd=fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)
    return f"{path}.old"


@contextlib.contextmanager
def folder(path: str) -> Iterator[str]:
    """
    A folder that is at *path* when the block has ended well; until then its files go to another.

    What is yielded leads to that other folder itself, also if another user renames it. It is for
    one user alone, as files are. Raises OSError if anything is at *path*.
    """
    parent, name = os.path.split(path.rstrip("/"))
    with contextlib.ExitStack() as closing:
        above = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        closing.callback(os.close, above)
        if _status(name or ".", above) is not None:
            raise FileExistsError(errno.EEXIST, "it is there already, and no folder is replaced")
        part = f".{_cut(name)}.{os.urandom(8).hex()}.part"
        fd = _fresh_folder(part, above)
        closing.callback(os.close, fd)
        try:
            yield f"/proc/self/fd/{fd}"
            user = caller()
            if user is not None and _may_write(os.fstat(above), *user):
                _give(fd, *user)
            _require_same(part, above, fd)
            os.rename(part, name, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            shutil.rmtree(".", dir_fd=fd, ignore_errors=True)  # all but the folder itself
            with contextlib.suppress(OSError):
                _require_same(part, above, fd)
                os.rmdir(part, dir_fd=above)
            raise


def _status(name: str, above: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=above)
    except FileNotFoundError:
        return None


def _fresh_folder(name: str, above: int) -> int:
    """A descriptor of a new folder; OSError if another one came in its place."""
    os.mkdir(name, 0o700, dir_fd=above)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=above)
    try:
        _require_private(fd)
        os.fchmod(fd, 0o700)  # whatever the umask
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_private(fd: int) -> None:
    found = os.fstat(fd)
    with os.scandir(fd) as entries:
        used = any(entries)
    if used or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "the new folder in it is not this user's alone")


def _require_same(name: str, above: int, fd: int) -> None:
    """Raise OSError if another file has that name now."""
    found = _status(name, above)
    if found is None or not os.path.samestat(found, os.fstat(fd)):
        raise OSError(errno.EPERM, "another user renamed the folder while it was written")


def _give(fd: int, uid: int, gid: int) -> None:
    """
    Give a folder with all that is in it to a user.

    The folder itself is the last one: until then nobody but its owner reaches what is in it.
    """
    for _, _, names, each in os.fwalk(".", topdown=False, follow_symlinks=False, dir_fd=fd):
        for name in names:
            os.chown(name, uid, gid, dir_fd=each, follow_symlinks=False)
        os.fchown(each, uid, gid)


class _Fresh:
    """A new file beside *path*; :meth:`rename` gives it that name, else :meth:`close` drops it."""

    def __init__(self, path: str, *, force: bool) -> None:
        self._force = force
        folder, self._name = os.path.split(path)
        self._part = f".{_cut(self._name)}.{os.urandom(8).hex()}.part"
        self._folder = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            before = self._replaced()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self._part, flags, _MODE, dir_fd=self._folder)
        except BaseException:
            os.close(self._folder)
            raise
        os.fchmod(self.fd, _MODE)  # whatever the umask
        self._hand_over(before)

    def _replaced(self) -> os.stat_result | None:
        """The status of a file of that name, if there is one; OSError if it must stay."""
        try:
            found = os.lstat(self._name or ".", dir_fd=self._folder)
        except FileNotFoundError:
            return None
        _require_ours(found, force=self._force)
        return found

    def _hand_over(self, before: os.stat_result | None) -> None:
        """
        Give the file to the user who called sudo, if that user could have made it there.

        Otherwise a sudo rule for this program alone would let the user own a file in any folder
        of root.
        """
        user = caller()
        if user is None:
            return
        uid, gid = user
        folder = os.fstat(self._folder)
        sticky = folder.st_mode & stat.S_ISVTX and folder.st_uid != uid
        if sticky and before is not None and before.st_uid != uid:
            return
        if _may_write(folder, uid, gid):
            os.fchown(self.fd, uid, gid)

    def rename(self) -> None:
        """Give the file its name."""
        self._replaced()  # a file of that name may have come meanwhile
        os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._part = ""

    def close(self) -> None:
        """Remove the file if it was not renamed."""
        if self._part:
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self._folder)
        os.close(self._folder)


def _cut(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def _special(path: str, *, force: bool) -> int | None:
    """A descriptor of this process, a pipe or a device at *path*, opened; None for files."""
    own = _OWN.fullmatch(path)
    if own:
        return os.dup(_STANDARD.get(own["name"], int(own["fd"] or own["proc"] or 0)))
    try:
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        facts = os.fstat(found)
        if not (stat.S_ISFIFO(facts.st_mode) or stat.S_ISCHR(facts.st_mode)):
            return None
        _require_ours(facts, force=force)
        return _open_special(found)
    finally:
        os.close(found)


def _open_special(found: int) -> int:
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(f"/proc/self/fd/{found}", flags)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads from it, start its reader first") from None
        raise
    os.set_blocking(fd, True)
    return fd


def _require_ours(found: os.stat_result, *, force: bool) -> None:
    """Raise OSError, with the reason as its text, if *found* must not be replaced or written to."""
    kind = found.st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(kind):
        raise OSError(errno.EPERM, "it is a link, and none is followed")
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        raise OSError(errno.EPERM, "it is neither a file nor a pipe")
    user = caller()
    if force or found.st_uid in (0, os.geteuid()) or (user and found.st_uid == user[0]):
        return
    owner = _name(found.st_uid)
    raise OSError(errno.EPERM, f"it belongs to {owner}, and only --force replaces that")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def caller() -> tuple[int, int] | None:
    """Uid and gid of the user who called sudo, if this process runs as root by it."""
    given = (os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", ""))
    if os.geteuid() != 0 or not all(re.fullmatch(r"[0-9]{1,10}", text) for text in given):
        return None
    uid, gid = map(int, given)
    # The last number means "do not change it".
    return (uid, gid) if 0 < uid < (1 << 32) - 1 and gid < (1 << 32) - 1 else None


def _may_write(folder: os.stat_result, uid: int, gid: int) -> bool:
    """Whether that user may create files in a folder, by its mode."""
    if folder.st_uid == uid:
        return bool(folder.st_mode & stat.S_IWUSR)
    groups = {gid}
    with contextlib.suppress(KeyError):
        groups |= set(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    return bool(folder.st_mode & (stat.S_IWGRP if folder.st_gid in groups else stat.S_IWOTH))
