# SPDX-License-Identifier: Apache-2.0
"""
The process that holds the breakpoints: started by ``uprobes.Attacher``, which speaks to it.

A SIGKILL that comes while the kernel writes to the target makes it give up half-way:
it says "failed to unregister, leaking uprobe", and the breakpoint stays. So whoever may
be killed leaves that to this process, which nobody has a reason to kill. It blocks
signals, and when the socket to its parent closes it takes out what is in and ends.

Breakpoints go to the file whose descriptor comes with the request, by way of
``/proc/self/fd``, and never to a path: by then a path may lead to another program, such as a
setuid one, into which the kernel would write for us.

It runs without the rest of the package, so that it is small and there at once. A
message is JSON with file descriptors beside it; each request has one answer.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import select
import signal
import socket
import stat
import sys
import threading
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: A request is a few bytes for each place; a target has less than 100.
MESSAGE_BYTES, MESSAGE_FDS = 1 << 16, 64
#: The error number of a file that breakpoints may not go into.
UNFIT = errno.EMEDIUMTYPE
#: Links that are closed at once: each waits for a grace period of the kernel.
_CLOSERS = 16

_SYS_BPF, _SYS_PERF_EVENT_OPEN = 321, 298  # x86_64
#: include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type, BPF_F_UPROBE_MULTI_RETURN.
_BPF_LINK_CREATE, _TRACE_UPROBE_MULTI, _MULTI_RETURN = 28, 48, 1
#: include/uapi/linux/perf_event.h.
_IOC_ENABLE, _IOC_SET_BPF, _FLAG_FD_CLOEXEC = 0x2400, 0x40042408, 8
_PMU = "/sys/bus/event_source/devices/uprobe"
#: Where ref_ctr_offset lies in the config of that PMU (its format/ref_ctr_offset: config:32-63).
_SEMAPHORE_SHIFT = 32


class _LinkCreate(ctypes.Structure):
    """``union bpf_attr`` for BPF_LINK_CREATE with ``uprobe_multi``."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("link_flags", ctypes.c_uint32),
        ("path", ctypes.c_char_p),
        ("offsets", ctypes.c_void_p),
        ("ref_ctr_offsets", ctypes.c_void_p),
        ("cookies", ctypes.c_void_p),
        ("cnt", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class _PerfAttr(ctypes.Structure):
    """``struct perf_event_attr`` (include/uapi/linux/perf_event.h) in its version 5."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("between", ctypes.c_uint64 * 5),
        ("path", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 5),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def multi_link(program: int, path: bytes, pid: int, places: dict[str, Any]) -> list[int]:
    """One link that carries all *places* (Linux 6.6)."""
    offsets = array.array("Q", places["offsets"])
    semaphores = array.array("Q", places["semaphores"])
    attr = _LinkCreate(
        prog_fd=program,
        attach_type=_TRACE_UPROBE_MULTI,
        path=path,
        offsets=offsets.buffer_info()[0],
        ref_ctr_offsets=semaphores.buffer_info()[0] if any(semaphores) else None,
        cnt=len(offsets),
        flags=_MULTI_RETURN if places["returns"] else 0,
        pid=pid,
    )
    return [_syscall(_SYS_BPF, _BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))]


def perf_events(program: int, path: bytes, pid: int, places: dict[str, Any]) -> list[int]:
    """One perf event for each of *places*; all of them or none."""
    fds: list[int] = []
    try:
        for offset, semaphore in zip(places["offsets"], places["semaphores"], strict=True):
            config = semaphore << _SEMAPHORE_SHIFT | (_return_bit() if places["returns"] else 0)
            attr = _PerfAttr(_pmu_type(), ctypes.sizeof(_PerfAttr), config, path=path)
            attr.offset = offset
            event = ctypes.byref(attr)
            fds.append(_syscall(_SYS_PERF_EVENT_OPEN, event, pid, -1, -1, _FLAG_FD_CLOEXEC))
            fcntl.ioctl(fds[-1], _IOC_SET_BPF, program)
            fcntl.ioctl(fds[-1], _IOC_ENABLE, 0)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _pmu_type() -> int:
    with open(f"{_PMU}/type") as file:  # noqa: PTH123 - pathlib takes longer than all the rest
        return int(file.read())


def _return_bit() -> int:
    with open(f"{_PMU}/format/retprobe") as file:  # noqa: PTH123
        return 1 << int(file.read().removeprefix("config:"))


class Closers:
    """
    Threads that close links, started as they are needed, *most* of them.

    Where the host gives no more threads (pids.max, RLIMIT_AS) those that there are do it,
    and where there is none, whoever asks.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def do(self, work: Callable[[], None]) -> None:
        """Do *work*, which raises nothing, soon."""
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._most:
            self._start()
        if self._threads:
            self._waiting.put(work)
        else:
            work()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, daemon=True)
        with contextlib.suppress(RuntimeError, MemoryError):  # "can't start new thread"
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()
            self._idle.release()

    def end(self) -> None:
        """Return when all work is done."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()


def is_fit(file: int) -> bool:
    """Whether a breakpoint may go into *file*: not where it gives its user another one's rights."""
    mode = os.fstat(file).st_mode
    return stat.S_ISREG(mode) and not mode & (stat.S_ISUID | stat.S_ISGID)


def has_ended(process: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


class Holder:
    """Does what the other end of *channel* asks for, until that closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._held: dict[int, list[int]] = {}
        self._numbers = count(1)
        self._closers = Closers(_CLOSERS)

    def run(self) -> None:
        """Serve; at the end, whatever ends it, nothing is attached."""
        try:
            self._serve()
        finally:
            self._detach(list(self._held), [])
            self._closers.end()

    def _serve(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES, MESSAGE_FDS)
            except ConnectionError:  # our parent was killed before it read an answer
                return
            if not data:
                return
            request = json.loads(data)
            if "programs" in request:
                answer = json.dumps(self._attach(request, fds)).encode()
                with contextlib.suppress(OSError):  # our parent has gone, as we shall see
                    self._channel.send(answer)
            else:
                self._detach(request["numbers"], fds)

    def _attach(self, request: dict[str, Any], fds: list[int]) -> list[int]:
        """
        For each program the number by which it is detached, or minus its error number.

        *fds* are the file, the pidfd of the process, and the programs.
        """
        try:
            if len(fds) < 2 + len(request["programs"]):  # the kernel had no room for them
                return [-errno.EMFILE] * len(request["programs"])
            file, process, *programs = fds
            return [
                self._attach_one(request, places, program, file, process)
                for places, program in zip(request["programs"], programs, strict=True)
            ]
        finally:
            _close_all(fds)

    def _attach_one(
        self, request: dict[str, Any], places: dict[str, Any], program: int, file: int, process: int
    ) -> int:
        if not is_fit(file):
            return -UNFIT
        way = multi_link if request["multi"] else perf_events
        try:
            links = way(program, b"/proc/self/fd/%d" % file, request["pid"], places)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except MemoryError:
            return -errno.ENOMEM
        number = next(self._numbers)
        self._held[number] = links
        if has_ended(process):
            # Until now the number of the process may have been another one's.
            self._detach([number], [])
            return -errno.ESRCH
        return number

    def _detach(self, numbers: list[int], tell: list[int]) -> None:
        """Close them without waiting; when it is done, so are the file descriptors *tell*."""
        links = [fd for number in numbers for fd in self._held.pop(number)]
        left, lock = len(links), threading.Lock()

        def close(link: int) -> None:
            nonlocal left
            with contextlib.suppress(OSError):  # the descriptor is gone whatever it says
                os.close(link)
            with lock:
                left -= 1
                last = left == 0
            if last:
                _close_all(tell)

        for link in links:
            self._closers.do(functools.partial(close, link))
        if not links:
            _close_all(tell)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    Holder(socket.socket(fileno=int(sys.argv[1]))).run()
