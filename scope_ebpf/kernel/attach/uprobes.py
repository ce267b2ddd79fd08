# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints of BPF programs in one process, attached and removed by a separate process.

From Linux 6.6 on one link carries all breakpoints of a program (uprobe_multi). Before that each is
a perf event of its own, and the kernel removes those one after the other, 0.1 s each
(bench/pipeline.py leave). ``attacher.py`` explains why this takes a separate process.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from scope_ebpf.errors import PERMIT, HostError
from scope_ebpf.kernel.attach import attacher
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Attachment

#: enum bpf_attach_type, which programs must be loaded for.
TRACE_UPROBE_MULTI = 48


def has_multi(release: str | None = None) -> bool:
    """Whether this kernel, or that of *release*, has uprobe_multi links."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return match is not None and (int(match[1]), int(match[2])) >= (6, 6)


class Identity(Protocol):
    """The target process and its file; ``beam.vm.identity.Identity`` is one."""

    @property
    def pid(self) -> int:
        """The number of the process."""

    @property
    def pidfd(self) -> int:
        """A descriptor of the process, readable when it has ended."""

    @property
    def file(self) -> int:
        """A descriptor of the file that was inspected as its program."""

    def check(self) -> None:
        """Raise a NoSuchProcessError unless it still runs that file, as the same user."""


class Attacher(Closing):
    """
    The process that holds breakpoints; it removes them and ends when this process ends.

    A context manager. It may be shared by threads and by targets. HostError if it cannot start.

    With *fork* it is forked from this process, if that has one thread: an interpreter that starts
    anew takes longer than all that it does. A process that runs for days shall not have one: what
    was its memory at that time would stay.
    """

    def __init__(self, *, fork: bool = True) -> None:
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        try:
            with its:
                alone = fork and threading.active_count() == 1
                self._process = _Fork(its) if alone else _fresh(its)
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            self._channel.close()
            raise HostError(
                f"cannot start the process that holds breakpoints: {error.strerror}"
            ) from None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def set_priority(self, nice: int) -> None:
        """
        Set its scheduling priority to *nice*, as in setpriority(2), so that it runs before targets.

        It leads a session of its own, so where the scheduler groups processes by session
        (autogroup, sched(7)) the group gets the same priority. OSError where that is not permitted.
        """
        os.setpriority(os.PRIO_PROCESS, self.pid, nice)
        with contextlib.suppress(FileNotFoundError):  # the kernel has no such groups
            Path(f"/proc/{self.pid}/autogroup").write_text(str(nice))

    def fileno(self) -> int:
        """A descriptor that is readable when the process has ended, and not before."""
        # Not the channel: there are answers in it, of which another thread waits for one.
        return self._pidfd

    def attach(
        self,
        identity: Identity,
        programs: Sequence[tuple[int, Sequence[Attachment]]],
        *,
        multi: bool,
    ) -> list[int]:
        """
        Attach each program, by its fd, to all its attachments in the file of *identity*.

        Returns for each program the number for :meth:`detach`, or minus an error number; then it
        is attached nowhere. HostError if the process has ended.
        """
        request = {
            "pid": identity.pid,
            "multi": multi,
            "programs": [
                {
                    "returns": group[0].returns,
                    "offsets": [attachment.offset for attachment in group],
                    "semaphores": [attachment.semaphore for attachment in group],
                }
                for _, group in programs
            ],
        }
        fds = [identity.file, identity.pidfd, *(fd for fd, _ in programs)]
        with self._lock:
            answer = self._ask(request, fds)
        numbers: list[int] = json.loads(answer)
        return numbers

    def detach(self, numbers: Sequence[int]) -> int:
        """Remove the attached *numbers*, without waiting; a descriptor for :func:`wait_gone`."""
        reading, writing = os.pipe()
        try:
            with self._lock, contextlib.suppress(HostError):  # then they are removed
                self._send({"numbers": numbers}, [writing])
        finally:
            os.close(writing)
        return reading

    def _ask(self, request: object, fds: list[int]) -> bytes:
        self._send(request, fds)
        with contextlib.suppress(ConnectionError):
            answer = self._channel.recv(attacher.MESSAGE_BYTES)
            if answer:
                return answer
        raise self._ended()

    def _send(self, request: object, fds: list[int]) -> None:
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], fds)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> HostError:
        return HostError("the process that holds the breakpoints has ended, and they with it")

    def close(self) -> None:
        """End the process; returns when it has removed all breakpoints."""
        with self._lock:  # another thread may wait for its answer
            self._channel.close()
        self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class _Fork:
    """One that was forked from this process, with the methods of a Popen that are used."""

    def __init__(self, its: socket.socket) -> None:
        self.returncode: int | None = None
        # The fork closes its end when it leads a session of its own: until then its group's
        # priority is that of this process's session.
        reading, writing = os.pipe()
        with held_back(), os.fdopen(reading, "rb") as until:  # handlers of fork lose exceptions
            try:
                self.pid = os.fork()
                if self.pid == 0:
                    _serve(its)
            finally:
                os.close(writing)
            until.read()

    def wait(self) -> None:
        """Wait until it has ended. One that another process has forked is not waited for."""
        with contextlib.suppress(ChildProcessError):
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _serve(its: socket.socket) -> NoReturn:
    """Be the attacher, in the fork; its name and command line are those of a fresh one."""
    try:
        gc.freeze()
        attacher.block_signals()
        os.setsid()
        channel = attacher.keep_only(its.detach())
        attacher.rename([sys.executable, "-I", "-S", attacher.__file__, str(channel)])
        attacher.Holder(socket.socket(fileno=channel)).run()
        os._exit(0)
    finally:
        os._exit(1)


def _fresh(its: socket.socket) -> subprocess.Popen[bytes]:
    """An interpreter alone (-I -S), and out of reach of the terminal's signals."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", attacher.__file__, str(its.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
        start_new_session=True,
    )


class Uprobes:
    """
    Breakpoints in the process of *identity*, held by *holder*; *multi* as :func:`has_multi`.

    ``numbers`` are the attacher's numbers of them, one for each program.
    """

    def __init__(self, identity: Identity, holder: Attacher, *, multi: bool) -> None:
        self._identity = identity
        self._holder = holder
        self._multi = multi
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.numbers)

    def attach(
        self, programs: Sequence[tuple[int, Sequence[Attachment]]]
    ) -> list[HostError | None]:
        """
        Attach each of *programs*, an fd and its attachments; returns the error of each, or None.

        Raises as ``Identity.check`` does, and then nothing new is attached.
        """
        self._identity.check()
        results: list[HostError | None] = []
        numbers = self._holder.attach(self._identity, programs, multi=self._multi)
        for number, (_, group) in zip(numbers, programs, strict=True):
            results.append(_refused(group[0].name, -number) if number < 0 else None)
        self.numbers += [number for number in numbers if number > 0]
        return results

    def remove(self, numbers: Sequence[int]) -> int | None:
        """Remove those of *numbers*, without waiting; as :meth:`detach`."""
        if not numbers:
            return None
        self.numbers = [number for number in self.numbers if number not in numbers]
        return self._holder.detach(numbers)

    def detach(self) -> int | None:
        """Remove every breakpoint, without waiting; a descriptor for :func:`wait_gone` if any."""
        if not self.numbers:
            return None
        leaving = self._holder.detach(self.numbers)
        self.numbers.clear()
        return leaving


def _refused(name: str, number: int) -> HostError:
    """The error for a breakpoint in function *name* that failed with errno *number*."""
    if number in (errno.EPERM, errno.EACCES):
        return HostError(f"the kernel does not permit a breakpoint in {name}: {PERMIT}")
    if number == attacher.UNFIT:
        return HostError(f"cannot attach to {name}: the program's file is setuid or setgid by now")
    if number == errno.ESRCH:
        return HostError(f"cannot attach to {name}: the process has ended")
    return HostError(f"cannot attach to {name}: {os.strerror(number)}")


def wait_gone(leaving: int | None) -> None:
    """Wait until the breakpoints are out whose removal gave the descriptor *leaving*; close it."""
    if leaving is not None:
        os.read(leaving, 1)  # until its other end is closed
        os.close(leaving)
