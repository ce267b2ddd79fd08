# SPDX-License-Identifier: Apache-2.0
"""The breakpoints that BPF links of any process on this host hold, as far as the kernel shows."""

from __future__ import annotations

import array
import ctypes
import os
from typing import TYPE_CHECKING

from scope_ebpf.kernel.bpf.libbpf import library

if TYPE_CHECKING:
    from collections.abc import Iterator

#: enum bpf_link_type, and enum bpf_perf_event_type: include/uapi/linux/bpf.h.
_PERF_EVENT, _UPROBE_MULTI = 7, 12
_OF_UPROBE, _OF_RETURN = 1, 2
#: Offsets that are read of one link: an emulator has less than 10,000 functions.
_MOST = 1 << 16


class _Multi(ctypes.Structure):
    """``uprobe_multi`` in ``struct bpf_link_info`` (Linux 6.8)."""

    _fields_ = (
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("path_size", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
    )


class _Perf(ctypes.Structure):
    """``perf_event`` in ``struct bpf_link_info``, of a uprobe (Linux 6.6)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("file_name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    )


class _Kinds(ctypes.Union):
    _fields_ = (("multi", _Multi), ("perf", _Perf))


class _LinkInfo(ctypes.Structure):
    """``struct bpf_link_info`` as far as it is read here."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("of", _Kinds),
    )


def held(pid: int) -> set[int]:
    """
    Offsets in files at which links hold breakpoints that may be in process *pid*.

    Links that are limited to another process are left out. Breakpoints without a BPF link (perf,
    ftrace) are not found, and none before Linux 6.6 or without CAP_SYS_ADMIN.
    """
    found: set[int] = set()
    for fd in _links():
        try:
            found |= _offsets(fd, pid)
        finally:
            os.close(fd)
    return found


def _links() -> Iterator[int]:
    """A descriptor of each link of the host; the caller closes it."""
    number = ctypes.c_uint32(0)
    while library().bpf_link_get_next_id(number.value, ctypes.byref(number)) == 0:
        fd = library().bpf_link_get_fd_by_id(number.value)
        if fd >= 0:
            yield fd


def _offsets(fd: int, pid: int) -> set[int]:
    info = _LinkInfo()
    if not _ask(fd, info):
        return set()
    if info.type == _PERF_EVENT and info.of.perf.type in (_OF_UPROBE, _OF_RETURN):
        return {info.of.perf.offset}
    count = min(info.of.multi.count, _MOST)
    if info.type != _UPROBE_MULTI or not count or info.of.multi.pid not in (0, pid):
        return set()
    offsets = array.array("Q", bytes(8 * count))
    again = _LinkInfo()
    again.of.multi.offsets, again.of.multi.count = offsets.buffer_info()[0], count
    return set(offsets) if _ask(fd, again) else set()


def _ask(fd: int, info: _LinkInfo) -> bool:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    done: int = library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
    return done == 0
