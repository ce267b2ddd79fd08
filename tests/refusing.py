# SPDX-License-Identifier: Apache-2.0
"""
Runs a command without one system call, as a container's seccomp filter would have it.

    python3 tests/refusing.py perf_event_open COMMAND ...

What is refused fails with "Operation not permitted", for root and for every child too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path
from typing import Final

#: Number of the system call on x86_64, and what its first argument must be; None for any.
CALLS: Final = {
    "perf_event_open": (298, None),
    "BPF_LINK_CREATE": (321, 28),
}
#: include/uapi/linux/bpf_common.h, filter.h, seccomp.h, prctl.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
#: Where struct seccomp_data has the call's number and the lower half of its first argument.
_NUMBER, _FIRST = 0, 16


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(name: str) -> None:
    """
    From now on the call *name* is refused to this process.
    """
    number, first = CALLS[name]
    steps = [(_LOAD, 0, 0, _NUMBER), (_JUMP_IF_EQUAL, 0, 1 if first is None else 3, number)]
    if first is not None:
        steps += [(_LOAD, 0, 0, _FIRST), (_JUMP_IF_EQUAL, 0, 1, first)]
    steps += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "cannot filter system calls")


def prefix(name: str) -> list[str]:
    """
    What to put before a command.
    """
    return [sys.executable, str(Path(__file__).resolve()), name]


if __name__ == "__main__":
    refuse(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
