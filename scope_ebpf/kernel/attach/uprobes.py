# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints of BPF programs in one process, put there and taken out by a process of their own.

From Linux 6.6 on one link carries all places of a program (uprobe_multi). Before
that each place is a perf event of its own, and the kernel takes those out one
after the other, 0.1 s each (bench/pipeline.py leave). Why that takes another process
says ``attacher.py``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from scope_ebpf.errors import PERMIT, HostError
from scope_ebpf.kernel.attach import attacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.attach.plan import Attachment

#: enum bpf_attach_type, which programs must be loaded for.
TRACE_UPROBE_MULTI = 48


def has_multi(release: str | None = None) -> bool:
    """Whether this kernel, or that of *release*, has uprobe_multi links."""
    match = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return match is not None and (int(match[1]), int(match[2])) >= (6, 6)


class Identity(Protocol):
    """The process that is attached to, and its file; ``beam.vm.identity.Identity`` is one."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def pidfd(self) -> int:
        """A descriptor that tells when it has ended."""

    @property
    def file(self) -> int:
        """A descriptor of the file that was inspected as its program."""

    def check(self) -> None:
        """Raise a NoSuchProcessError unless it still runs that file, as the same user."""


class Attacher:
    """
    The process that holds breakpoints, which end with it, and it with us.

    May be shared by threads and by targets.
    """

    def __init__(self) -> None:
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        try:
            self._process = self._start(its)
        except OSError as error:
            self._channel.close()
            raise HostError(
                f"cannot start the process that holds breakpoints: {error.strerror}"
            ) from None

    def _start(self, its: socket.socket) -> subprocess.Popen[bytes]:
        with its:
            # Alone (-I -S), and out of reach of the terminal's signals.
            return subprocess.Popen(
                [sys.executable, "-I", "-S", attacher.__file__, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def hurry(self, nice: int) -> None:
        """
        Let it run before what hooks are taken out of; *nice* as in setpriority(2).

        It is a session of its own, so where sessions share the CPUs (autogroup, sched(7)) its
        session must go first, too. Raises OSError where that is not permitted.
        """
        os.setpriority(os.PRIO_PROCESS, self.pid, nice)
        with contextlib.suppress(FileNotFoundError):  # the kernel has no such groups
            Path(f"/proc/{self.pid}/autogroup").write_text(str(nice))

    def fileno(self) -> int:
        """Readable when it has ended, while nothing is asked of it."""
        return self._channel.fileno()

    def attach(
        self,
        identity: Identity,
        programs: Sequence[tuple[int, Sequence[Attachment]]],
        *,
        multi: bool,
    ) -> list[int]:
        """
        Attach each program, by its fd, to all its places in the file of *identity*.

        Returns for each the number by which it is taken out again, or minus an
        error number; then none of its places is attached. HostError if it has ended.
        """
        request = {
            "pid": identity.pid,
            "multi": multi,
            "programs": [
                {
                    "returns": places[0].returns,
                    "offsets": [place.offset for place in places],
                    "semaphores": [place.semaphore for place in places],
                }
                for _, places in programs
            ],
        }
        fds = [identity.file, identity.pidfd, *(fd for fd, _ in programs)]
        with self._lock:
            answer = self._ask(request, fds)
        numbers: list[int] = json.loads(answer)
        return numbers

    def detach(self, numbers: Sequence[int]) -> int:
        """Take them out, without waiting; what :func:`wait_gone` waits for."""
        reading, writing = os.pipe()
        try:
            with self._lock, contextlib.suppress(HostError):  # they ended with it
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
        """Let it take out everything and end; returns when it has."""
        self._channel.close()
        self._process.wait()


class Uprobes:
    """Breakpoints in the process of *identity*; *multi* as :func:`has_multi` says."""

    def __init__(self, identity: Identity, holder: Attacher, *, multi: bool) -> None:
        self._identity = identity
        self._holder = holder
        self._multi = multi
        #: By which the attacher knows them.
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.numbers)

    def attach(
        self, programs: Sequence[tuple[int, Sequence[Attachment]]]
    ) -> list[HostError | None]:
        """
        Attach each of *programs*, an fd and its places; what went wrong with it, if it did.

        Raises as ``Identity.check`` does, and then nothing new is attached.
        """
        self._identity.check()
        results: list[HostError | None] = []
        numbers = self._holder.attach(self._identity, programs, multi=self._multi)
        for number, (_, places) in zip(numbers, programs, strict=True):
            results.append(_refused(places[0].name, -number) if number < 0 else None)
        self.numbers += [number for number in numbers if number > 0]
        return results

    def detach(self) -> int | None:
        """Take every breakpoint out, without waiting; what :func:`wait_gone` waits for."""
        if not self.numbers:
            return None
        leaving = self._holder.detach(self.numbers)
        self.numbers.clear()
        return leaving


def _refused(name: str, number: int) -> HostError:
    """Why there is no breakpoint in function *name*."""
    if number in (errno.EPERM, errno.EACCES):
        return HostError(f"the kernel does not permit a breakpoint in {name}: {PERMIT}")
    if number == attacher.UNFIT:
        return HostError(f"cannot attach to {name}: the program's file is setuid or setgid by now")
    if number == errno.ESRCH:
        return HostError(f"cannot attach to {name}: the process has ended")
    return HostError(f"cannot attach to {name}: {os.strerror(number)}")


def wait_gone(leaving: int | None) -> None:
    """Return when the last of those that were taken out is gone."""
    if leaving is not None:
        os.read(leaving, 1)  # until its other end is closed
        os.close(leaving)
