# SPDX-License-Identifier: Apache-2.0
"""
Free memory that the C library keeps.

glibc gives each thread an arena of its own, and ``malloc_trim`` returns the last free chunk of the
first arena only (glibc 2.36 malloc/malloc.c, ``mtrim``). So the memory that a thread needed to read
the tables of many VMs would never return to the kernel.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: M_ARENA_MAX of malloc.h.
_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Use one arena for all threads; to be called before there is a second thread."""
    with suppress(AttributeError):  # only glibc has it
        _libc.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Return free memory to the kernel: after many VMs it is a third of the daemon's memory."""
    with suppress(AttributeError):  # only glibc has it
        _libc.malloc_trim(0)
