# SPDX-License-Identifier: Apache-2.0
"""
The identity of a process: its number may be another process's, or run another program, at any time.

A process is held by its pidfd, its program by a descriptor of the file that was inspected;
:meth:`Identity.check` finds an exec or a change of user. A reading of a process is valid only if
the check passes *after* it.
"""

from __future__ import annotations

import os
import re
import select
import stat
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from scope_ebpf.beam.vm.exec_watch import watch_execs
from scope_ebpf.errors import NoSuchProcessError, NotPermittedError, TargetChangedError
from scope_ebpf.sandbox.proc import inode_of

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.exec_watch import ExecWatch

_PROC = Path("/proc")
#: The real, effective, saved and filesystem id of a process in its status (proc(5)).
_IDS = re.compile(rb"^([UG])id:((?:\s+\d+){4})\s*$", re.MULTILINE)
_STATUS_BYTES = 4096
_PRIVILEGED = stat.S_ISUID | stat.S_ISGID

#: Checks of a process whose program has gone, until it has ended or has another one.
_LOOKS, _BETWEEN_MS = 20, 1
#: Longest wait of poll(2), ms.
_LONGEST_MS = (1 << 31) - 1
#: Seconds between two checks of the files of a process that is waited for.
_PAUSE = 0.1

Ids = tuple[int, ...]


class Program(Protocol):
    """The file that a process runs; ``beam.elf.binary.Binary`` is one."""

    def fileno(self) -> int:
        """Its descriptor."""


class Process:
    """
    Process *pid*, as it was when this was made.

    Raises ProcessLookupError if there is none; *watched* is made by :meth:`watch`.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except OverflowError:  # no C int
            raise ProcessLookupError from None
        self._close = weakref.finalize(self, os.close, self.pidfd)
        self._execs: ExecWatch | None = None

    def watch(self) -> None:
        """Watch for execs from now on. NoSuchProcessError, NotPermittedError."""
        self._execs = watch_execs(self.pid)
        # The number was that of this process when it was watched, if the process is still there.
        self.check()

    @property
    def execs(self) -> int | None:
        """A descriptor that hangs up when it executes a program or ends, where there is one."""
        return self._execs.descriptor if self._execs else None

    def poller(self) -> Poller:
        """Report by a call whether it may have ended or executed; one for each thread."""
        return Poller(self.pidfd, self._execs)

    def check(self) -> None:
        """Raise NoSuchProcessError if it has ended, TargetChangedError if it has executed."""
        if self._close.alive and not self.poller()():
            return
        if self._close.alive and self._goes_on():
            raise TargetChangedError(self.pid, "became another program")
        raise NoSuchProcessError(f"process {self.pid} has ended")

    def _goes_on(self) -> bool:
        """
        Distinguish an exec from an end.

        At the end of a thread the event hangs up before the pidfd is readable, and the program is
        gone before that. The first thread's program is gone for a moment while another executes.
        """
        for _ in range(_LOOKS):
            if _is_readable(self.pidfd, _BETWEEN_MS):
                return False
            if _has_program(self.pid):
                return True
        return False

    def close(self) -> None:
        """Release it; from then on every check says that it has ended."""
        self._close()
        if self._execs:
            self._execs.close()


class Poller:
    """The result of :meth:`Process.poller`."""

    def __init__(self, pidfd: int, execs: ExecWatch | None) -> None:
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)
        self._execs = execs
        if execs and execs.descriptor is not None:
            self._poll.register(
                execs.descriptor, 0
            )  # a hang-up is reported without being asked for
            self._execs = None

    def __call__(self, seconds: float = 0.0) -> bool:
        """Wait for *seconds* at most; whether there is a reason for a check."""
        if self._poll.poll(min(seconds * 1000, _LONGEST_MS)):
            return True
        return self._execs is not None and self._execs.happened()


class _Due:
    """When the files of a process are checked again, for a caller that waits in short turns."""

    def __init__(self) -> None:
        self._when = 0.0

    def has_come(self) -> bool:
        """True if a check is due; the next one is due a while later."""
        now = time.monotonic()
        if now < self._when:
            return False
        self._when = now + _PAUSE
        return True


@dataclass(frozen=True, eq=False)
class Identity:
    """One process while it runs one program as one user."""

    process: Process
    #: Start of the process, clock ticks since the host booted.
    started: int
    #: Device and inode of the program's file.
    inode: tuple[int, int]
    #: Real, effective, saved and filesystem user ids.
    uids: Ids
    #: The same group ids.
    gids: Ids
    #: The file that was inspected; hooks are attached to no other.
    binary: Program
    proc: Path = _PROC
    due: _Due = field(default_factory=_Due, repr=False)

    @classmethod
    def of(cls, process: Process, started: int, binary: Program, proc: Path = _PROC) -> Self:
        """
        Make one of a watched *process* and the file that was opened as its program.

        Raises NotPermittedError for a process with the rights of another user, as a setuid file
        or a change of user gives them, NoSuchProcessError if it has ended meanwhile, and
        TargetChangedError if it runs another file by now.
        """
        status = os.fstat(binary.fileno())
        uids, gids = _credentials(process.pid, proc)
        _refuse_privileged(process.pid, status.st_mode, uids, gids)
        inode = status.st_dev, status.st_ino
        identity = cls(process, started, inode, uids, gids, binary, proc)
        identity.check()
        return identity

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.process.pid

    @property
    def pidfd(self) -> int:
        """Readable when the process has ended."""
        return self.process.pidfd

    @property
    def execs(self) -> int | None:
        """As :attr:`Process.execs`."""
        return self.process.execs

    @property
    def file(self) -> int:
        """The descriptor of the program's file."""
        return self.binary.fileno()

    def check(self) -> None:
        """Raise NoSuchProcessError if it has ended, TargetChangedError if it is another by now."""
        self.process.check()
        try:
            inode = inode_of(f"{self.proc}/{self.pid}/exe")
            ids = _credentials(self.pid, self.proc)
        except OSError:
            raise NoSuchProcessError(f"process {self.pid} has ended") from None
        self.process.check()  # so the file was that of this process
        if inode != self.inode:
            raise TargetChangedError(self.pid, "became another program")
        if ids != (self.uids, self.gids):
            raise TargetChangedError(self.pid, "changed its user or group")

    def wait(self, seconds: float) -> None:
        """
        Return after *seconds*; sooner with an error, as :meth:`check`, if there is one.

        An exec or an end is noticed at once, a change of user within a tenth of a second.
        """
        self.process.poller()(seconds)
        if self.due.has_come():
            self.check()
        else:
            self.process.check()

    def close(self) -> None:
        """Let go of the process; from then on every check says that it has ended."""
        self.process.close()


def _is_readable(pidfd: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _has_program(pid: int) -> bool:
    """Whether a process has memory; one that is about to end has none any more."""
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115 - fast
    except OSError:
        return False


def _credentials(pid: int, proc: Path) -> tuple[Ids, Ids]:
    """Read the four user ids and the four group ids of a process."""
    try:
        fd = os.open(f"{proc}/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, _STATUS_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcessError(f"process {pid} has ended") from None
    found = {letter: tuple(map(int, ids.split())) for letter, ids in _IDS.findall(text)}
    try:
        return found[b"U"], found[b"G"]
    except KeyError:
        raise NoSuchProcessError(f"process {pid} has ended") from None


def _refuse_privileged(pid: int, mode: int, uids: Ids, gids: Ids) -> None:
    """The user who started it must have all its rights; file capabilities are no user's."""
    if mode & _PRIVILEGED:
        which = "setuid" if mode & stat.S_ISUID else "setgid"
        raise NotPermittedError(f"process {pid} runs a {which} file: such programs are left alone")
    for what, ids in (("user", uids), ("group", gids)):
        if len(set(ids)) != 1:
            raise NotPermittedError(
                f"process {pid} runs with the rights of more than one {what} "
                f"({', '.join(map(str, dict.fromkeys(ids)))}): such programs are left alone"
            )
