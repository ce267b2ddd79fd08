# SPDX-License-Identifier: Apache-2.0
"""Contents of an ELF file as plain data. It is parsed elsewhere (``scope_ebpf.sandbox``)."""

from __future__ import annotations

from typing import NamedTuple

from scope_ebpf.errors import NotABeamError


class UnreadableElfError(NotABeamError):
    """The file is not an ELF file, or of an unknown kind."""


class Symbol(NamedTuple):
    """
    One defined symbol: where it lies in the file's own address space.

    *source* says how it was found in a file that hides it; "" for a symbol of the file.
    """

    name: str
    address: int
    size: int
    is_function: bool
    source: str = ""


class Segment(NamedTuple):
    """A PT_LOAD segment."""

    address: int
    offset: int
    file_size: int
    executable: bool
    writable: bool = False


class UsdtSite(NamedTuple):
    """
    One site of one USDT probe.

    *address* and *semaphore* (0: none) are addresses of the file, corrected
    for prelinking; *arguments* is the note's own text, such as ``8@%r12``.
    Format: systemtap's "UserSpaceProbeImplementation".
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str
