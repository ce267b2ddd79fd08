# SPDX-License-Identifier: Apache-2.0
"""
Leftover breakpoints in a process: how they are found and removed.

The kernel leaves a breakpoint in if the process that removes it is killed at that moment ("failed
to unregister, leaking uprobe" in its log), which may happen to the attacher, too. A leftover
breakpoint does no harm but the time of its traps. It goes when a program is attached at the same
offset and detached again. This never harms another tool's breakpoint there: the kernel removes a
breakpoint with its last user only.

A breakpoint makes its page private to the process, and the page table shows which pages are
private and which are the file's. So only private pages are read and compared, mostly none: this
takes a millisecond for a VM.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.attach.plan import Attachment
from scope_ebpf.kernel.attach.links import held
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
)
from scope_ebpf.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scope_ebpf.kernel.attach.uprobes import Identity

    Read = Callable[[int, int], bytes]

_BREAKPOINT = 0xCC
_PAGE = os.sysconf("SC_PAGESIZE")
#: Bytes of ``/proc/PID/maps`` that are read: the program's own file is mapped lowest, so it is
#: first.
_MAPS_BYTES = 64 << 10
#: Text that is examined, bytes: an emulator has 5 MB.
_MOST_TEXT = 64 << 20
#: Private pages of it that are compared: about 30 have hooks. A process that writes to its own text
#: must not make this slow.
_MOST_PAGES = 512
#: Breakpoints that are removed in one call, and links in one request to the attacher.
MOST, _AT_ONCE = 256, 32
#: Documentation/admin-guide/mm/pagemap.rst: the page is in memory, or in swap; it is a file's.
_PRESENT, _SWAPPED, _OF_A_FILE = 1 << 63, 1 << 62, 1 << 61
_ROW = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) ..x. ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+)", re.MULTILINE
)
#: ``BPF_PROG_TYPE_KPROBE``, and a program that returns 0: include/uapi/linux/bpf.h.
_KPROBE = 2
_NOTHING = bytes.fromhex("b700000000000000 9500000000000000")


class _Span(NamedTuple):
    """A mapping of a file in a process's memory: its address, offset in the file, size in bytes."""

    address: int
    offset: int
    size: int


class _LoadOptions(ctypes.Structure):
    """``struct bpf_prog_load_opts`` (libbpf 1.1, src/bpf.h) as far as the attach type."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
    )


def find(identity: Identity, read: Read | None = None) -> list[int]:
    """
    Offsets in the file of a process at which its text has a breakpoint and the file has none.

    *read* reads its memory, given an address and a size, for callers that must not block; by
    default it is read from ``/proc``. OSError if the process has ended.
    """
    pid, file = identity.pid, identity.file
    found: list[int] = []
    with ExitStack() as stack:
        memory, pages = (
            stack.enter_context(Path(f"/proc/{pid}/{name}").open("rb", buffering=0)).fileno()
            for name in ("mem", "pagemap")
        )
        read = read or (lambda address, size: os.pread(memory, size, address))
        for span in _text(pid, os.fstat(file).st_ino):
            flags = np.frombuffer(
                os.pread(pages, span.size // _PAGE * 8, span.address // _PAGE * 8), "<u8"
            )
            own = flags & (_PRESENT | _SWAPPED) != 0
            for page in np.flatnonzero(own & (flags & _OF_A_FILE == 0))[:_MOST_PAGES].tolist():
                now = read(span.address + page * _PAGE, _PAGE)
                before = os.pread(file, _PAGE, span.offset + page * _PAGE)
                found += [span.offset + page * _PAGE + at for at in _differences(now, before)]
    return found


def _text(pid: int, inode: int) -> Iterator[_Span]:
    """The executable mappings of a file in a process, at most _MOST_TEXT bytes of them."""
    with Path(f"/proc/{pid}/maps").open("rb", buffering=0) as file:
        rows = _head(file.fileno())
    left = _MOST_TEXT
    for start, end, offset, number in _ROW.findall(rows):
        if int(number) == inode:
            size = min(int(end, 16) - int(start, 16), left)
            yield _Span(int(start, 16), int(offset, 16), size)
            left -= size


def _head(fd: int) -> str:
    """The beginning of ``/proc/PID/maps``, which each read returns at most a page of."""
    text = b""
    while len(text) < _MAPS_BYTES and (more := os.read(fd, _MAPS_BYTES)):
        text += more
    return text.decode("utf-8", "replace")


def _differences(now: bytes, before: bytes) -> list[int]:
    size = min(len(now), len(before))
    held, original = (np.frombuffer(page, np.uint8, size) for page in (now, before))
    return np.flatnonzero((held == _BREAKPOINT) & (original != _BREAKPOINT)).tolist()


def heal(
    identity: Identity,
    semaphores: Mapping[int, int],
    attacher: Attacher | None = None,
    *,
    multi: bool | None = None,
    read: Read | None = None,
) -> int:
    """
    Remove the leftover breakpoints of a process, at most MOST; returns how many.

    With an *attacher*, which others use, it does not wait until they are out. *semaphores* has the
    offset of each USDT site's semaphore by the offset of the site: the kernel keeps both together,
    and decrements the semaphore as well. Breakpoints that a tool holds at this moment stay; if
    a debugger is attached nothing is done, since the kernel does not know its breakpoints. *read*
    is as in :func:`find`. Raises HostError, and as ``Identity.check`` does.
    """
    # A process that has ended has none.
    with suppress(OSError):
        before = _left(identity.pid, find(identity, read))
        if before and not _is_debugged(identity.pid):
            sites = [_site(offset, semaphores.get(offset, 0)) for offset in before[:MOST]]
            multi = has_multi() if multi is None else multi
            if attacher:
                return _touch(identity, sites, attacher, multi=multi)
            with Attacher() as own:
                _touch(identity, sites, own, multi=multi)
            return len(set(before) - set(find(identity, read)))
    return 0


def _left(pid: int, found: list[int]) -> list[int]:
    """Those of *found* that no link is known to hold; attaching to the others changes nothing."""
    holds = held(pid) if found else set()
    return [offset for offset in found if offset not in holds]


def _touch(identity: Identity, sites: list[Attachment], holder: Attacher, *, multi: bool) -> int:
    """Attach to *sites* and detach again, without waiting; returns to how many."""
    program = _load_nothing(multi=multi)
    uprobes = Uprobes(identity, holder, multi=multi)
    touched = len(sites)
    try:
        if uprobes.attach([(program, sites)]) != [None]:
            # The kernel refuses one of them, and then all. It refuses none in an emulator, so this
            # is another file, which gets one more request.
            results = uprobes.attach([(program, (site,)) for site in sites[:_AT_ONCE]])
            touched = results.count(None)
        leaving = uprobes.detach()
        if leaving is not None:
            os.close(leaving)
    finally:
        os.close(program)
    return touched


def _site(offset: int, semaphore: int) -> Attachment:
    name = "a breakpoint that was left"
    return Attachment("leftover", "", name, offset, 0, returns=False, semaphore=semaphore)


def _is_debugged(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_bytes()
    # In bytes: the name of a process may have characters that text mode takes for a newline.
    tracer = re.search(rb"^TracerPid:\s*(\d+)", status, re.MULTILINE)
    return tracer is not None and int(tracer[1]) != 0


def _load_nothing(*, multi: bool) -> int:
    """Load a program that does nothing; its descriptor."""
    options = _LoadOptions(ctypes.sizeof(_LoadOptions))
    options.expected_attach_type = TRACE_UPROBE_MULTI if multi else 0
    return check(
        library().bpf_prog_load(
            _KPROBE, b"leftover", b"GPL", _NOTHING, len(_NOTHING) // 8, ctypes.byref(options)
        ),
        "cannot load a program that does nothing",
    )
