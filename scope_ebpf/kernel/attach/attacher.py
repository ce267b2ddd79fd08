# SPDX-License-Identifier: Apache-2.0
"""
The process that holds the breakpoints, a child of ``uprobes.Attacher``, which sends it requests.

If a process gets SIGKILL while the kernel removes its breakpoint, the kernel gives up: it logs
"failed to unregister, leaking uprobe", and the breakpoint stays. So the breakpoints are attached
and removed by this process, which users have no reason to kill. It blocks signals, and when the
socket to its parent closes it removes all breakpoints and ends.

Breakpoints go to the file whose descriptor comes with the request, through ``/proc/self/fd``,
and never to a path: a path may lead to another program by then, such as a setuid one, and the
kernel would write into that.

A command forks it from itself (``uprobes.py``), which takes no time; the daemon starts an
interpreter for it. It imports nothing of the package, so that it is small and starts fast. A
message is JSON with file descriptors beside it; each request to attach has one answer.
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

#: A request has a few bytes for each attachment; a target has less than 100.
MESSAGE_BYTES, MESSAGE_FDS = 1 << 16, 64
#: The error number for a file that may not get breakpoints.
UNFIT = errno.EMEDIUMTYPE
#: Links that are closed at once: each waits for a grace period of the kernel.
_CLOSERS = 16

_SYS_BPF, _SYS_PERF_EVENT_OPEN = 321, 298  # x86_64
#: include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type, BPF_F_UPROBE_MULTI_RETURN.
_BPF_LINK_CREATE, _TRACE_UPROBE_MULTI, _MULTI_RETURN = 28, 48, 1
#: include/uapi/linux/prctl.h; proc_pid_stat(5): where command line and environment begin and end,
#: counted from the field behind the name.
_PR_SET_NAME, _ARGUMENTS = 15, slice(45, 49)
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


def multi_link(program: int, path: bytes, pid: int, sites: dict[str, Any]) -> list[int]:
    """One link that carries the breakpoints of all *sites* (Linux 6.6)."""
    offsets = array.array("Q", sites["offsets"])
    semaphores = array.array("Q", sites["semaphores"])
    attr = _LinkCreate(
        prog_fd=program,
        attach_type=_TRACE_UPROBE_MULTI,
        path=path,
        offsets=offsets.buffer_info()[0],
        ref_ctr_offsets=semaphores.buffer_info()[0] if any(semaphores) else None,
        cnt=len(offsets),
        flags=_MULTI_RETURN if sites["returns"] else 0,
        pid=pid,
    )
    return [_syscall(_SYS_BPF, _BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))]


def perf_events(program: int, path: bytes, pid: int, sites: dict[str, Any]) -> list[int]:
    """One perf event for each of *sites*; all of them or none."""
    fds: list[int] = []
    try:
        for offset, semaphore in zip(sites["offsets"], sites["semaphores"], strict=True):
            config = semaphore << _SEMAPHORE_SHIFT | (_return_bit() if sites["returns"] else 0)
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
    At most *most* threads that close links, started when they are needed.

    Where the host allows no more threads (pids.max, RLIMIT_AS) the started ones do all the work,
    and where there is none, the caller does.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def do(self, work: Callable[[], None]) -> None:
        """Let a thread call *work*, which raises nothing."""
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
        """Wait until all work is done."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()


def is_fit(file: int) -> bool:
    """Whether *file* may get a breakpoint: a regular file that is not setuid or setgid."""
    mode = os.fstat(file).st_mode
    return stat.S_ISREG(mode) and not mode & (stat.S_ISUID | stat.S_ISGID)


def has_ended(process: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


class Holder:
    """Serves the requests from *channel*, until its other end closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._held: dict[int, list[int]] = {}
        self._numbers = count(1)
        self._closers = Closers(_CLOSERS)

    def run(self) -> None:
        """Serve all requests; at the end, also after an error, all breakpoints are removed."""
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
                with contextlib.suppress(OSError):  # the parent has ended, as the next turn finds
                    self._channel.send(answer)
            else:
                self._detach(request["numbers"], fds)

    def _attach(self, request: dict[str, Any], fds: list[int]) -> list[int]:
        """
        Attach the programs of *request*; returns the number of each, or minus its error number.

        *fds* are the file, the pidfd of the process, and the programs. They are closed.
        """
        try:
            if len(fds) < 2 + len(request["programs"]):  # the kernel had no room for them
                return [-errno.EMFILE] * len(request["programs"])
            file, process, *programs = fds
            return [
                self._attach_one(request, sites, program, file, process)
                for sites, program in zip(request["programs"], programs, strict=True)
            ]
        finally:
            _close_all(fds)

    def _attach_one(
        self, request: dict[str, Any], sites: dict[str, Any], program: int, file: int, process: int
    ) -> int:
        if not is_fit(file):
            return -UNFIT
        attach = multi_link if request["multi"] else perf_events
        try:
            links = attach(program, b"/proc/self/fd/%d" % file, request["pid"], sites)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except MemoryError:
            return -errno.ENOMEM
        number = next(self._numbers)
        self._held[number] = links
        if has_ended(process):
            # Its number may have been given to another process before the attaching.
            self._detach([number], [])
            return -errno.ESRCH
        return number

    def _detach(self, numbers: list[int], notify: list[int]) -> None:
        """Close the links of *numbers* without waiting, and after the last one *notify*."""
        links = [fd for number in numbers for fd in self._held.pop(number)]
        left, lock = len(links), threading.Lock()

        def close(link: int) -> None:
            nonlocal left
            with contextlib.suppress(OSError):  # the descriptor is closed also after an error
                os.close(link)
            with lock:
                left -= 1
                last = left == 0
            if last:
                _close_all(notify)

        for link in links:
            self._closers.do(functools.partial(close, link))
        if not links:
            _close_all(notify)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def block_signals() -> None:
    """Let no signal but SIGKILL and SIGSTOP end this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def keep_only(channel: int) -> int:
    """Close all descriptors but *channel*, which gets another number, and stderr."""
    nothing, kept = os.open(os.devnull, os.O_RDWR), os.dup(channel)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    # Not up to the limit: it may be a billion, or lower than what was opened before it.
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - fast
        if fd not in (0, 1, 2, kept):
            with contextlib.suppress(OSError):  # that of the listing
                os.close(fd)
    return kept


def rename(words: list[str]) -> None:
    """
    Let /proc show *words* as the command line, and the program's name as that of the process.

    What is longer than the command line was is shown with spaces, as setproctitle(3) does it: the
    kernel lets a command line without a zero at its end go on in the environment behind it.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - fast
        start, end, _, last = map(int, file.read().rpartition(b")")[2].split()[_ARGUMENTS])
    line = b"\0".join(map(os.fsencode, words))
    if len(line) >= end - start:
        line, end = line.replace(b"\0", b" ")[: last - start - 1], last
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)
    _libc.prctl(_PR_SET_NAME, os.path.basename(os.fsencode(words[0])))  # noqa: PTH119 - fast


if __name__ == "__main__":
    block_signals()
    Holder(socket.socket(fileno=int(sys.argv[1]))).run()
