# SPDX-License-Identifier: Apache-2.0
"""The kernel's statistics of BPF programs: how often each ran, and for how long."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Iterator

#: enum bpf_stats_type, include/uapi/linux/bpf.h.
_STATS_RUN_TIME = 0


class ProgramStats(NamedTuple):
    """
    Runs of one program since it was loaded, while the kernel measured.

    ``runs`` is their number and ``seconds`` their CPU time. ``missed`` are hits for which the
    kernel did not run the program, because another program or the change of a map was under way on
    that CPU; 0 before Linux 5.12.
    """

    runs: int
    seconds: float
    missed: int = 0

    def since(self, before: ProgramStats) -> ProgramStats:
        """The difference to *before*, an earlier reading."""
        return ProgramStats(
            self.runs - before.runs, self.seconds - before.seconds, self.missed - before.missed
        )

    def and_of(self, other: ProgramStats) -> ProgramStats:
        """The sum of this and of the *other* program's."""
        return ProgramStats(
            self.runs + other.runs, self.seconds + other.seconds, self.missed + other.missed
        )


class _ProgramInfo(ctypes.Structure):
    """``struct bpf_prog_info`` (include/uapi/linux/bpf.h) up to the last field that is read."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


def program_stats(fd: int) -> ProgramStats:
    """The statistics of the program behind *fd*."""
    info = _info(fd)
    return ProgramStats(info.run_cnt, info.run_time_ns / 1e9, info.recursion_misses)


def verified_instructions(fd: int) -> int:
    """
    Number of instructions that the verifier followed in the program behind *fd*.

    It follows every turn of a loop, so no run of the program takes more. 0 before Linux 5.16.
    """
    return int(_info(fd).verified_insns)


def _info(fd: int) -> _ProgramInfo:
    info = _ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "cannot ask the kernel about a program",
    )
    return info


@contextmanager
def measuring() -> Iterator[bool]:
    """
    Let the kernel measure every BPF program of the host while the block runs (Linux 5.8).

    This requires CAP_SYS_ADMIN. Without it the block gets False, and all of :func:`program_stats`
    is 0.
    """
    fd = library().bpf_enable_stats(_STATS_RUN_TIME)
    if fd in (-errno.EPERM, -errno.EACCES):
        yield False
        return
    check(fd, "cannot measure BPF run time")
    try:
        yield True
    finally:
        os.close(fd)
