# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints that were left in a process, and how they go.

The kernel leaves a breakpoint in where the one who takes it out is killed meanwhile ("failed to
unregister, leaking uprobe" in its log). That happens when the process that holds ours is killed
at that moment as well (``attacher.py``). A breakpoint that is left does no harm but its traps. It
goes when the same place is attached to and detached from again, which never harms what
another tool holds there: the kernel takes a breakpoint out for its last user only.

A breakpoint makes its page the process's own, and the page table tells such pages from those of
the file. So only those are read and compared, mostly none: a millisecond for a VM.
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
#: Of ``/proc/PID/maps``: a program's own file is mapped below all else, so it comes first.
_MAPS_BYTES = 64 << 10
#: Text that is looked at, bytes: an emulator has 5 MB.
_MOST_TEXT = 64 << 20
#: Pages of it that are the process's own and are compared: some 30 have hooks. Who writes to its
#: own text must not keep us longer.
_MOST_PAGES = 512
#: Breakpoints that are taken out at once, and links in one request to the attacher.
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
    """A piece of a file in a process's memory."""

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
    Where the text of a process has a breakpoint that the file which it runs does not have.

    Offsets in the file. *read* reads its memory, for who must not wait for that; by itself it is
    read from ``/proc``. Raises OSError if the process has ended.
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
    """The executable pieces of a file in a process, as far as they are looked at."""
    with Path(f"/proc/{pid}/maps").open("rb", buffering=0) as file:
        rows = _head(file.fileno())
    left = _MOST_TEXT
    for start, end, offset, number in _ROW.findall(rows):
        if int(number) == inode:
            size = min(int(end, 16) - int(start, 16), left)
            yield _Span(int(start, 16), int(offset, 16), size)
            left -= size


def _head(fd: int) -> str:
    """The beginning of ``/proc/PID/maps``, which gives a page at a time."""
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
    Take out the breakpoints of a process that nobody holds; how many have gone.

    With an *attacher*, which is busy with others, nothing is waited for: they are on their way
    out. At most MOST of them. *semaphores* has the offset of each USDT site's semaphore by that
    of the site: the kernel knows both together, and counts the semaphore down as well.
    Breakpoints that a tool holds at this moment stay; where a debugger is attached nothing is
    done, since the kernel does not know of its breakpoints. *read* is as in :func:`find`. Raises
    HostError, and as ``Identity.check`` does.
    """
    # A process that has ended has none.
    with suppress(OSError):
        before = _left(identity.pid, find(identity, read))
        if before and not _is_debugged(identity.pid):
            places = [_place(offset, semaphores.get(offset, 0)) for offset in before[:MOST]]
            multi = has_multi() if multi is None else multi
            if attacher:
                return _touch(identity, places, attacher, multi=multi)
            with Attacher() as ours:
                _touch(identity, places, ours, multi=multi)
            return len(set(before) - set(find(identity, read)))
    return 0


def _left(pid: int, found: list[int]) -> list[int]:
    """Those of *found* that no link is known to hold; to touch the others would be in vain."""
    holds = held(pid) if found else set()
    return [offset for offset in found if offset not in holds]


def _touch(identity: Identity, places: list[Attachment], holder: Attacher, *, multi: bool) -> int:
    """Attach to *places* and detach again, without waiting; to how many."""
    program = _load_nothing(multi=multi)
    uprobes = Uprobes(identity, holder, multi=multi)
    touched = len(places)
    try:
        if uprobes.attach([(program, places)]) != [None]:
            # The kernel refuses one of them. That must not keep the others in, but is nothing that
            # it would refuse of a BEAM, so for whoever wrote it there is no more than one request.
            results = uprobes.attach([(program, (place,)) for place in places[:_AT_ONCE]])
            touched = results.count(None)
        leaving = uprobes.detach()
        if leaving is not None:
            os.close(leaving)
    finally:
        os.close(program)
    return touched


def _place(offset: int, semaphore: int) -> Attachment:
    name = "a breakpoint that was left"
    return Attachment("leftover", "", name, offset, 0, returns=False, semaphore=semaphore)


def _is_debugged(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_bytes()
    # In bytes: a name may hold what a file that is opened as text takes for a newline.
    tracer = re.search(rb"^TracerPid:\s*(\d+)", status, re.MULTILINE)
    return tracer is not None and int(tracer[1]) != 0


def _load_nothing(*, multi: bool) -> int:
    """Descriptor of a program that does nothing, to be attached."""
    options = _LoadOptions(ctypes.sizeof(_LoadOptions))
    options.expected_attach_type = TRACE_UPROBE_MULTI if multi else 0
    return check(
        library().bpf_prog_load(
            _KPROBE, b"leftover", b"GPL", _NOTHING, len(_NOTHING) // 8, ctypes.byref(options)
        ),
        "cannot load a program that does nothing",
    )
