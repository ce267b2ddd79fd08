# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints of BPF programs in one process.

From Linux 6.6 on one link carries all places of a program (uprobe_multi). Before
that each place is a perf event of its own, and the kernel takes those out one
after the other, 0.1 s each; together they take as long as one (bench/pipeline.py leave).

A SIGKILL that comes while the kernel writes to the target makes it give up half-way:
it says "failed to unregister, leaking uprobe", and the breakpoint stays. So whoever may
be killed has a child do it, which nobody knows of and which ends with its work. The
kernel's own cleaning up behind a process that was killed is not cut short.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from errno import ESRCH
from typing import TYPE_CHECKING, Never

import numpy as np

from scope_ebpf.kernel.libbpf import LibbpfError, UprobeOptions, check, library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scope_ebpf.plan import Attachment

#: include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type, BPF_F_UPROBE_MULTI_RETURN.
_BPF_LINK_CREATE = 28
_SYS_BPF = 321
TRACE_UPROBE_MULTI = 48
_RETURN = 1
#: What a child answers beside the link: 0 or an error number.
_ERRNO = struct.Struct("i")


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


def has_multi(release: str | None = None) -> bool:
    """Whether this kernel, or that of *release*, has uprobe_multi links."""
    match = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return match is not None and (int(match[1]), int(match[2])) >= (6, 6)


class Uprobes:
    """
    All breakpoints of file *path* in process *pid*; *multi* as :func:`has_multi` says.

    *by_child*: a child of ours writes them, so that we may be killed at any moment.
    Not for a process with threads of its own.
    """

    def __init__(self, path: Path, pid: int, *, multi: bool, by_child: bool = False) -> None:
        self._pid = pid
        self._path = bytes(path)
        self._multi = multi
        self._by_child = by_child
        self._fds: list[int] = []
        self._links: list[int] = []

    def __len__(self) -> int:
        return len(self._fds) + len(self._links)

    def attach(self, program: int, fd: int, places: Sequence[Attachment]) -> None:
        """
        Attach one program, libbpf's *program* and its *fd*, to all its *places*.

        Raises LibbpfError; then none of the places is attached.
        """
        if self._multi:
            self._fds.append(self._attach_multi(fd, places))
            return
        links: list[int] = []
        try:
            for place in places:
                links.append(self._attach_one(program, place))  # noqa: PERF401 - kept if one fails
        except LibbpfError:
            for link in links:
                library().bpf_link__destroy(link)
            raise
        self._links += links

    def _attach_one(self, program: int, place: Attachment) -> int:
        options = UprobeOptions(
            ctypes.sizeof(UprobeOptions), place.semaphore, 0, place.returns, None
        )
        return check(
            library().bpf_program__attach_uprobe_opts(
                program, self._pid, self._path, place.offset, ctypes.byref(options)
            ),
            f"cannot attach to {place.name}",
        )

    def _attach_multi(self, fd: int, places: Sequence[Attachment]) -> int:
        offsets = np.array([p.offset for p in places], np.uint64)
        semaphores = np.array([p.semaphore for p in places], np.uint64)
        attr = _LinkCreate(
            prog_fd=fd,
            attach_type=TRACE_UPROBE_MULTI,
            path=self._path,
            offsets=offsets.ctypes.data,
            ref_ctr_offsets=semaphores.ctypes.data if semaphores.any() else None,
            cnt=len(places),
            flags=_RETURN if places[0].returns else 0,
            pid=self._pid,
        )
        libc = ctypes.CDLL(None, use_errno=True)
        link: int = libc.syscall(
            _SYS_BPF, _BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr)
        )
        if link < 0:
            raise LibbpfError(f"cannot attach to {places[0].name}", ctypes.get_errno())
        return link

    def attach_all(
        self, programs: Sequence[tuple[int, int, Sequence[Attachment]]]
    ) -> list[LibbpfError | None]:
        """Each of *programs* as :meth:`attach` does it; what went wrong with each, if it did."""
        if self._multi and self._by_child:
            return self._attach_all_by_child(programs)
        results: list[LibbpfError | None] = []
        for program, fd, places in programs:
            try:
                self.attach(program, fd, places)
                results.append(None)
            except LibbpfError as error:
                results.append(error)
        return results

    def _attach_all_by_child(
        self, programs: Sequence[tuple[int, int, Sequence[Attachment]]]
    ) -> list[LibbpfError | None]:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def attach() -> None:
            ours.close()
            for _, fd, places in programs:
                try:
                    link = self._attach_multi(fd, places)
                except LibbpfError as error:
                    its.send(_ERRNO.pack(error.errno))
                else:
                    socket.send_fds(its, [_ERRNO.pack(0)], [link])

        results: list[LibbpfError | None] = []
        with ours, its:
            child = _fork(attach)
            its.close()
            for _, _, places in programs:
                answer, fds, _, _ = socket.recv_fds(ours, _ERRNO.size, 1)
                self._fds += fds
                (errno,) = _ERRNO.unpack(answer or _ERRNO.pack(ESRCH))  # the child was killed
                failed = LibbpfError(f"cannot attach to {places[0].name}", errno)
                results.append(None if fds else failed)
        os.waitpid(child, 0)
        return results

    def detach(self) -> None:
        """Take every breakpoint out; returns when the last one is gone."""
        if not len(self):
            return
        if not self._by_child:
            self._close_all()
            return
        reading, writing = os.pipe()

        def close() -> None:
            os.close(writing)
            os.read(reading, 1)  # until we have closed ours, so that these are the last
            self._close_all()

        child = _fork(close)
        os.close(reading)
        for fd in self._fds:
            os.close(fd)
        for link in self._links:
            library().bpf_link__destroy(link)
        self._fds.clear()
        self._links.clear()
        os.close(writing)
        os.waitpid(child, 0)

    def _close_all(self) -> None:
        # The kernel waits a grace period for each link; together they wait as long as one.
        with ThreadPoolExecutor(len(self)) as pool:
            list(pool.map(os.close, self._fds))
            list(pool.map(library().bpf_link__destroy, self._links))
        self._fds.clear()
        self._links.clear()


def _fork(work: Callable[[], None]) -> int:
    """A child that does *work* and nothing else, whatever signals come; its pid."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if child == 0:
            _end_after(work)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_after(work: Callable[[], None]) -> Never:
    try:
        with contextlib.suppress(Exception):  # our end of the socket says what went wrong
            work()
    finally:
        os._exit(0)
