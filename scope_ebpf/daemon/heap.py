# SPDX-License-Identifier: Apache-2.0
"""
What the C library keeps of the memory that was given back to it.

glibc gives each thread an arena of its own, and ``malloc_trim`` does not give back the last
free piece of any but the first (glibc 2.36 malloc/malloc.c, ``mtrim``): what a thread took to
read the tables of a crowd of VMs would stay.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: M_ARENA_MAX of malloc.h.
_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def share() -> None:
    """Let all threads have one arena; to be called before there is a second thread."""
    with suppress(AttributeError):  # only glibc's has it
        _libc.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Give the kernel what is free: what many VMs took is a third of what we have."""
    with suppress(AttributeError):  # only glibc's has it
        _libc.malloc_trim(0)
