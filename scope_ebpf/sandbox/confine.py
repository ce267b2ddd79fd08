# SPDX-License-Identifier: Apache-2.0
"""
Giving up everything but a few open files, a little memory and a little time. Runs in the child.

Each step that a host or a service's own limits forbid is left out; the ones that need no privilege
(no new privileges, no capabilities, limits, the filter of system calls) are required.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from contextlib import suppress

from scope_ebpf.sandbox import limits

#: Unused user numbers: one for each child, so that no child and no tenant can signal a child.
_USERS = 4_000_000_000
_NOBODY = 65534
#: include/uapi/linux/prctl.h, include/uapi/linux/capability.h.
_SET_DUMPABLE, _SET_SECCOMP, _NO_NEW_PRIVS, _PARENT_DEATH = 4, 22, 38, 1
_FILTER, _CAPABILITIES_3, _LAST_CAPABILITY, _DROP_BOUND = 2, 0x20080522, 63, 24
_SIGKILL = 9
_CLONE_NEWNET = 0x40000000

#: include/uapi/linux/seccomp.h, linux/audit.h, linux/bpf_common.h.
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000
#: System calls that Python and C libraries need to compute and to answer, by architecture.
#: read, write, close, fstat, poll, lseek, mmap, mprotect, munmap, brk, rt_sigaction,
#: rt_sigprocmask, rt_sigreturn, pread64, madvise, getpid, recvfrom, sendto, sendmsg, recvmsg, exit,
#: mremap, getrusage, sigaltstack, futex, getitimer, setitimer, clock_gettime, exit_group, ppoll,
#: getrandom, newfstatat, gettimeofday.
_CALLS = {
    "x86_64": (
        _X86_64,
        (
            *(0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 28, 39, 44, 45, 46, 47, 60),
            *(25, 98, 131, 202, 36, 38, 228, 231, 271, 318, 262, 96),
        ),
    ),
    "aarch64": (
        _AARCH64,
        (
            *(63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 233, 172, 206, 207),
            *(211, 212, 93, 216, 165, 132, 98, 102, 103, 113, 94, 73, 278, 79, 169),
        ),
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def confine() -> None:
    """Cannot be undone. OSError if a required restriction is not possible."""
    # A network namespace takes longer than all the rest: only where there is no filter.
    filtered = os.uname().machine in _CALLS
    if not filtered:
        _require(_libc.unshare(_CLONE_NEWNET))
    with suppress(OSError):
        os.chdir("/")
    _limit()
    _become_nobody()
    _libc.prctl(_PARENT_DEATH, _SIGKILL, 0, 0, 0)
    _require(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _require(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    if filtered:
        _filter(*_CALLS[os.uname().machine])


def _require(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_AS, limits.MEMORY),
        (resource.RLIMIT_CPU, limits.CPU),
        (resource.RLIMIT_NOFILE, limits.FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (most, most))


def _become_nobody() -> None:
    """Become another user without groups, if permitted; drop all capabilities in any case."""
    for number in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_DROP_BOUND, number, 0, 0, 0)
    for user in (_USERS + os.getpid(), _NOBODY):
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue
        break
    header = struct.pack("<Ii", _CAPABILITIES_3, 0)
    _require(_libc.capset(header, bytes(24)))


def _filter(architecture: int, calls: tuple[int, ...]) -> None:
    """Refuse all system calls but *calls*."""
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0), (_AT_LEAST, len(calls), 0, _X32)]
    code += [(_EQUAL, len(calls) - index, 0, number) for index, number in enumerate(calls)]
    code += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    raw = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    program = _Program(len(code), ctypes.cast(buffer, ctypes.c_void_p))
    _require(_libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))
