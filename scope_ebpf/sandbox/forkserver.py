# SPDX-License-Identifier: Apache-2.0
"""
The process that forks confined children (``child.py``): started, asked, ended.

A command forks it before it has read anything, as long as it has one thread: an interpreter that
starts anew takes longer than all that a command asks of it. What a child can do is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scope_ebpf.errors import RefusedFileError
from scope_ebpf.sandbox import wire

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_CHILD = Path(__file__).with_name("child.py")
#: Seconds in which a fresh interpreter starts, on a host whose CPUs are all busy.
_START = 20.0
#: CPUCLOCK_SCHED, of a process's clock (include/linux/posix-timers.h).
_SCHEDULED = 2
#: proc_pid_stat(5): where the environment begins and ends, counted from the field behind the name.
_ENVIRONMENT = slice(47, 49)


class Server:
    """
    The process that forks children; another one is started where it has ended.

    *ended* is called with the CPU seconds of each that has ended.
    """

    def __init__(self, ended: Callable[[float], None]) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | _Fork | None = None
        self._ended = ended

    def start(self, *, fork: bool = False) -> None:
        """
        Start it, unless it runs; does not wait for it.

        With *fork* it is forked from this process, which must have no descriptor that others wait
        for the end of, and nothing of a target in its memory. If it has other threads, a fresh
        interpreter is started.
        """
        with self._lock:
            if fork and self._control is None and threading.active_count() == 1:
                self._control, its = socket.socketpair()
                with its:
                    self._process = _Fork(its)
            self._running()

    def fork(self, channel: socket.socket, kind: int) -> tuple[int, int]:
        """
        Make a child that serves *channel*; the server's number for it, and its process's.

        *kind* is one of ``limits``: what the child can do.
        """
        with self._lock:
            with contextlib.suppress(OSError, EOFError, wire.NonsenseError):
                return self._ask(kind, (channel.fileno(),))
            self._close()
            try:
                return self._ask(kind, (channel.fileno(),))
            except (OSError, EOFError, wire.NonsenseError) as error:
                self._close()
                raise RefusedFileError(
                    f"the process that parses files does not start: {error}", lasting=False
                ) from error

    def end(self, number: int) -> int | None:
        """End a child; return its status as of waitpid, None if that is not known."""
        with self._lock:
            if self._control is None:
                return None
            try:
                return self._ask(number)[0]
            except (OSError, EOFError, wire.NonsenseError):
                self._close()
                return None

    def pid(self) -> int | None:
        """Its process, if it runs."""
        process = self._process
        return process.pid if process else None

    def cpu_seconds(self) -> float:
        """CPU time of the one that runs, without its children's."""
        pid = self.pid()
        return (cpu_of(pid) or 0.0) if pid else 0.0

    def _ask(self, number: int, fds: tuple[int, ...] = ()) -> tuple[int, int]:
        control = self._running()
        wire.send(control, number, fds)
        first, second = wire.receive(control, time.monotonic() + _START)
        return first, second

    def _running(self) -> socket.socket:
        if self._control is None:
            self._control, its = socket.socketpair()
            with its:
                self._process = _fresh(its)
        return self._control

    def stop(self) -> None:
        """Let it end, and wait for that."""
        with self._lock:
            control, self._control = self._control, None
            process = self._taken()
            if control and process:
                control.close()
                process.wait()

    def _close(self) -> None:
        control, self._control = self._control, None
        process = self._taken()
        if control:
            control.close()
        if process:
            process.kill()
            process.wait()

    def _taken(self) -> subprocess.Popen[bytes] | _Fork | None:
        """Hand over the process that is to end; its CPU time is kept."""
        process, seconds = self._process, self.cpu_seconds()
        self._process = None
        self._ended(seconds)
        return process


def cpu_of(pid: int) -> float | None:
    """CPU time of another process; None if it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    except OSError:
        return None


class _Fork:
    """One that was forked from this process, with the methods of a Popen that are used."""

    def __init__(self, its: socket.socket) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _serve(its)

    def kill(self) -> None:
        # Where SIGCHLD is ignored its number is another process's once it has ended.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _serve(its: socket.socket) -> NoReturn:
    """Become the server, in the fork: with no descriptor, handler or text of the process before."""
    try:
        gc.disable()
        _forget()
        control = _only(its)
        from scope_ebpf.sandbox import child

        child.serve(control)
    finally:
        os._exit(0)


def _forget() -> None:
    """Drop what a fresh process would not have; signals do what they do by default."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    os.environ.clear()
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - fast
        start, end = map(int, file.read().rpartition(b")")[2].split()[_ENVIRONMENT])
    ctypes.memset(start, 0, end - start)
    os.setsid()
    os.chdir("/")


def _only(its: socket.socket) -> socket.socket:
    """Close all descriptors but this socket; standard streams lead to nothing."""
    nothing, kept = os.open(os.devnull, os.O_RDWR), os.dup(its.detach())
    first = max(3, nothing, kept) + 1
    control = os.dup2(kept, first, inheritable=False)
    for fd in range(3):
        os.dup2(nothing, fd)
    # Not up to the limit: it may be a billion, or lower than what was opened before it.
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - fast
        if fd not in (0, 1, 2, control):
            with contextlib.suppress(OSError):  # that of the listing
                os.close(fd)
    return socket.socket(fileno=control)


def _fresh(its: socket.socket) -> subprocess.Popen[bytes]:
    """An interpreter without an environment, with the socket *its*."""
    import subprocess

    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD), str(its.fileno()), *_paths()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
        env={},
        cwd="/",
        start_new_session=True,
    )


def _paths() -> list[str]:
    """Folders of this package, and of the packages that the child imports."""
    from importlib.util import find_spec

    folders = {str(Path(__file__).parents[2])}
    for name in ("capstone", "elftools"):
        found = find_spec(name)
        if found and found.origin:
            folders.add(str(Path(found.origin).parents[1]))
    return sorted(folders)
