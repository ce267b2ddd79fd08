# SPDX-License-Identifier: Apache-2.0
"""
Readings of memory that do not block a thread: each thread has a process that does them.

A page that does not come blocks its reader, perhaps for good and against SIGKILL. Here that
is the process (``reader_child.py``), which is left behind, and the thread goes on with another.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from scope_ebpf.beam.memory.process_memory import MAX_READ
from scope_ebpf.beam.memory.reader_child import ANSWER, IOVEC_BYTES, IOVECS_BYTES, REQUEST
from scope_ebpf.errors import NoAnswerError, ReadRefusedError

_CHILD = Path(__file__).with_name("reader_child.py")
#: Seconds until a reading is given up, by default.
PATIENCE = 5.0
#: Seconds in which a fresh interpreter starts, on a host whose CPUs are all busy.
_START = 20.0
#: Seconds in which all unused ones end.
_END = 1.0
#: Bytes that the shared memory keeps; more is freed after a larger reading.
_KEPT = 1 << 20
#: The clock of another process's CPU time (clock_getcpuclockid(3), CPUCLOCK_SCHED).
_CPU_CLOCK = 2


class _BrokenError(Exception):
    """The process has ended, or its answer is invalid."""


class Reader:
    """
    One process that reads, for one thread, which gives a reading up after *patience* seconds.

    Raises ReadRefusedError where it does not start.
    """

    def __init__(self, child: Path = _CHILD, patience: float = PATIENCE) -> None:
        shared = os.memfd_create("scope-ebpf-reader", os.MFD_CLOEXEC)
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                os.ftruncate(shared, IOVECS_BYTES + MAX_READ)
                self._shared = mmap.mmap(shared, 0)
                self._shared_at = ctypes.addressof(ctypes.c_char.from_buffer(self._shared))
                self.process = _start(child, its.fileno(), shared)
        except (OSError, ValueError) as error:
            self._channel.close()
            raise ReadRefusedError(
                f"the process that reads memory does not start: {error}"
            ) from error
        finally:
            os.close(shared)
        self._wait(_START)
        try:
            self._answer(0)
        except (TimeoutError, _BrokenError) as error:
            self.leave()
            raise ReadRefusedError("the process that reads memory does not start") from error
        self._wait(patience)

    def read(self, pid: int, out: int, size: int, iovecs: int, count: int) -> int:
        """As ``ProcessReader`` says. TimeoutError if there is no answer in time."""
        ctypes.memmove(self._shared_at, iovecs, IOVEC_BYTES * count)
        try:
            self._channel.send(REQUEST.pack(pid, count, size))
        except OSError as error:
            raise _BrokenError from error
        got = self._answer(size)
        if got > 0:
            ctypes.memmove(out, self._shared_at + IOVECS_BYTES, got)
        if size > _KEPT:
            self._shared.madvise(mmap.MADV_REMOVE, IOVECS_BYTES, size)
        return got

    def _wait(self, seconds: float) -> None:
        """Set a timeout in the kernel: that costs a reading no further system call."""
        whole, rest = divmod(int(seconds * 1e6), 1_000_000)
        span = struct.pack("ll", whole, rest)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)

    def _answer(self, most: int) -> int:
        try:
            answer = self._channel.recv(ANSWER.size + 1)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError as error:
            raise _BrokenError from error
        if len(answer) == ANSWER.size:
            got: int = ANSWER.unpack(answer)[0]
            if -max(errno.errorcode) <= got <= most:
                return got
        raise _BrokenError

    def cpu_seconds(self) -> float:
        """CPU time that the process has taken so far; 0 if it has ended."""
        with contextlib.suppress(OSError):
            return time.clock_gettime(~self.process.pid << 3 | _CPU_CLOCK)
        return 0.0

    def leave(self) -> None:
        """Let it end, without waiting."""
        self._channel.close()
        self.process.kill()

    def wake(self) -> None:
        """Let it end, and wake the thread that waits for it."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self, seconds: float) -> None:
        """Wait for its end, *seconds* at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)


def _start(child: Path, channel: int, shared: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(child), str(channel), str(shared)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[channel, shared],
        env={},
        cwd="/",
        start_new_session=True,
    )


class _Own(threading.local):
    """The reader process of one thread."""

    reader: Reader | None = None
    patience = PATIENCE
    #: CPU seconds of those that it had before.
    spent = 0.0


class Readers:
    """Every thread's process, started with its first reading; *child* is their program."""

    def __init__(self, child: Path = _CHILD) -> None:
        self._child = child
        self._own = _Own()
        self._lock = threading.Lock()
        self._closed = False
        #: CPU seconds of those that were left behind, and the most that was reported.
        self._spent_before = self._spent = 0.0
        self._running: set[Reader] = set()
        self._left: set[Reader] = set()

    def begin(self, patience: float = PATIENCE) -> None:
        """Give up this thread's readings after *patience* seconds; its process is there then."""
        self._own.patience = patience
        self._reader()

    def read(self, pid: int, out: int, size: int, iovecs: int, count: int) -> int:
        """
        As ``ProcessReader`` says, for ``process_memory.read_by``.

        Raises NoAnswerError where that takes too long, and ReadRefusedError if it cannot be done.
        """
        for again in (True, False):
            reader = self._reader()
            try:
                return reader.read(pid, out, size, iovecs, count)
            except TimeoutError:
                self._leave(reader)
                seconds = self._own.patience
                raise NoAnswerError(
                    f"process {pid} has memory that cannot be read within {seconds:g} s, so it is "
                    "not looked at any further"
                ) from None
            except _BrokenError as error:
                self._leave(reader)
                if not again:
                    raise ReadRefusedError("the process that reads memory has ended") from error
        raise AssertionError

    def left(self) -> int:
        """How many were left behind and have not ended yet; for any thread."""
        with self._lock:
            self._left = {reader for reader in self._left if reader.process.poll() is None}
            return len(self._left)

    def pids(self) -> list[int]:
        """How many run, without those that were left behind; for any thread."""
        with self._lock:
            return [reader.process.pid for reader in self._running]

    def seconds(self) -> float:
        """CPU seconds of all there ever were, as far as known; for any thread."""
        with self._lock:
            running = sum(reader.cpu_seconds() for reader in self._running)
            self._spent = max(self._spent, self._spent_before + running)
            return self._spent

    def cpu_seconds(self) -> float:
        """CPU seconds of this thread and of its reader process."""
        reader = self._own.reader
        return time.thread_time() + self._own.spent + (reader.cpu_seconds() if reader else 0.0)

    def close(self) -> None:
        """End all, and start no more; those that are blocked are left."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, set()
        for reader in running:
            reader.wake()
        until = time.monotonic() + _END
        for reader in running:
            reader.end(max(0.0, until - time.monotonic()))

    def _reader(self) -> Reader:
        reader = self._own.reader
        if self._closed:
            raise ReadRefusedError("no memory is read any more")
        if reader is None:
            reader = self._own.reader = Reader(self._child, self._own.patience)
            with self._lock:
                self._running.add(reader)
            if self._closed:  # meanwhile
                self._leave(reader)
                return self._reader()
        return reader

    def _leave(self, reader: Reader) -> None:
        spent = reader.cpu_seconds()
        reader.leave()
        self._own.reader = None
        self._own.spent += spent
        with self._lock:
            self._spent_before += spent
            self._running.discard(reader)
            self._left.add(reader)
