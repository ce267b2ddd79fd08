# SPDX-License-Identifier: Apache-2.0
"""
The ports of a running VM: driver or program, owner, queue, bytes, and whether they are busy.

A row is kept only if its slot pointed to it before and after it was read, its own term leads back
to the slot, and its owner is a process; one that changes each time it is read is torn.

Sources: OTP-25.2.3 erts/emulator/beam/erl_port.h (struct _erl_drv_port, ERTS_PORT_SFLG_*),
erl_port_task.h (ERTS_PTS_FLG_*), erl_bif_port.c and io.c (port_info). The fields and flags are the
same in OTP 24 to 29.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.arrays import joined, picked
from scope_ebpf.beam.layouts.checks import check_ports
from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError, column, cpu_seconds
from scope_ebpf.beam.memory.terms import PID_TAG, PORT_TAG, PortCodec
from scope_ebpf.beam.vm.connections import MOST, waiters
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: Slots of the table that are read, ports at once, and readings of what changes meanwhile.
_MOST, _CHUNK, _ATTEMPTS = 1 << 22, 4096, 4
#: A port that is open, and those that are half made or gone (ERTS_PORT_SFLG_*).
_CONNECTED, _DEAD = 1 << 0, 1 << 8 | 1 << 9 | 1 << 11
#: Flags of ``sched.flags``: the driver said that it is busy, or too much waits for the driver.
_BUSY = 1 << 4 | 1 << 5
#: Bytes of a name that are read, and the end of the memory that it may lie at.
_NAME, _PAGE = 128, 4096

ROW = np.dtype(
    [
        ("address", np.uint64),
        ("id", np.uint64),
        ("owner", np.uint64),
        ("driver", np.uint64),
        ("name", np.uint64),
        ("bytes_in", np.uint64),
        ("bytes_out", np.uint64),
        ("queued", np.uint64),
        ("os_pid", np.int64),
        ("suspended", np.uint64),
        ("state", np.uint32),
        ("flags", np.uint32),
    ]
)
_FIELDS = {
    "id": "common.id",
    "owner": "connected",
    "driver": "drv_ptr",
    "name": "name",
    "bytes_in": "bytes_in",
    "bytes_out": "bytes_out",
    "queued": "ioq.size",
    "os_pid": "os_pid",
    "suspended": "suspended",
    "state": "state",
    "flags": "sched.flags",
}


@dataclass(frozen=True, slots=True)
class PortReading:
    """The ports at one moment."""

    #: Shape ``(n,)``, dtype :data:`ROW`; *id* and *owner* are terms, *driver* and *name* addresses.
    rows: NDArray[np.void]
    #: Ports that the table itself counts.
    total: int
    #: Ports that changed each time they were read, and are not among the rows.
    torn: int
    #: CPU seconds of the reading.
    seconds: float
    #: Whether the table has more slots than are read.
    cut: bool = False


class PortTable:
    """Reads the ports of one VM. ReadRefusedError where the table does not fit the layout."""

    def __init__(self, target: Target) -> None:
        self._memory, self._layout = target.memory, target.layout
        check_ports(target)
        self.codec = PortCodec.of(target)
        table = target.address("erts_port")
        self._slots, self._first, self._invalid = (
            read(table + self._layout.offset("ErtsPTab", f"r.o.{name}"))
            for read, name in (
                (self._memory.u32, "max"),
                (self._memory.u64, "tab"),
                (self._memory.u64, "invalid_element"),
            )
        )
        self._count = table + self._layout.offset("ErtsPTab", "vola.tile.count")
        self._at = {
            name: (self._layout.offset("Port", field), ROW[name].type)
            for name, field in _FIELDS.items()
        }
        self._size = max(at for at, _ in self._at.values()) + _WORD

    def read(self) -> PortReading:
        """Read them all. Raises ReadRefusedError."""
        began = cpu_seconds()
        words = self._memory.words(self._first, min(self._slots, _MOST))
        slots = np.flatnonzero(self._live(words)).astype(np.uint64)
        parts, torn = [np.empty(0, ROW)], 0
        for at in range(0, len(slots), _CHUNK):
            torn += self._settle(slots[at : at + _CHUNK], parts)
        rows = joined(parts)
        total = self._memory.u32(self._count)
        return PortReading(rows, total, torn, cpu_seconds() - began, self._slots > _MOST)

    def _live(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        live: NDArray[np.bool_] = (words != 0) & (words != self._invalid)
        live &= words & np.uint64(_WORD - 1) == 0
        return live

    def _settle(self, slots: NDArray[np.uint64], parts: list[NDArray[np.void]]) -> int:
        """Read the ports in some slots into *parts*; return how many could not be read whole."""
        for _ in range(_ATTEMPTS):
            before = self._look(slots)
            live = self._live(before)
            slots, before = slots[live], before[live]
            raw, read = self._memory.gather(before, self._size)
            rows = np.empty(len(slots), ROW)
            rows["address"] = before
            for name, (at, kind) in self._at.items():
                rows[name] = column(raw, at, kind)
            same = self._look(slots) == before
            dead = rows["state"] & np.uint32(_DEAD) != 0
            fits = rows["id"] & np.uint64(0xF) == PORT_TAG
            fits &= self.codec.slot(rows["id"]) == slots
            fits &= rows["owner"] & np.uint64(0xF) == PID_TAG
            fits &= rows["state"] & np.uint32(_CONNECTED) != 0
            whole = read & same & (fits | dead)
            parts.append(picked(rows, whole & ~dead))
            slots = slots[~whole]
            if not len(slots):
                break
        return len(slots)

    def _look(self, slots: NDArray[np.uint64]) -> NDArray[np.uint64]:
        raw, _ = self._memory.gather(np.uint64(self._first) + slots * np.uint64(_WORD), _WORD)
        return column(raw, 0, np.uint64)

    def drivers(self, rows: NDArray[np.void]) -> list[str | None]:
        """The name of each port's driver, length ``n``; None for one that could not be read."""
        at = self._layout.offset("erts_driver_t", "name")
        names: dict[int, str | None] = {}
        for driver in set(rows["driver"].tolist()):
            try:
                names[driver] = self._text(self._memory.u64(driver + at))
            except ReadRefusedError:
                names[driver] = None
        return [names[driver] for driver in rows["driver"].tolist()]

    def names(self, rows: NDArray[np.void]) -> list[str | None]:
        """What each port was opened with, as ``port_info(P, name)``; cut after 128 bytes."""
        return [self._text(address) for address in rows["name"].tolist()]

    def _text(self, address: int) -> str | None:
        """The text at an address; it may lie at the very end of what is mapped."""
        for size in (_NAME, _PAGE - address % _PAGE):
            try:
                raw = self._memory.read(address, min(size, _NAME))
            except UnreadableMemoryError:
                continue
            return raw.partition(b"\0")[0].decode("utf-8", "replace")
        return None

    def waiting(self, rows: NDArray[np.void]) -> list[int | None]:
        """How many processes each port has suspended; None from where there are more than MOST."""
        found: list[int | None] = []
        left = MOST
        for first in rows["suspended"].tolist():
            try:
                count = len(waiters(self._memory, first, left)) if first else 0
            except ReadRefusedError:
                found.append(None)
                continue
            left -= count
            found.append(count)
        return found


def is_busy(flags: int) -> bool:
    """Whether a port is busy: who sends to it is suspended."""
    return bool(flags & _BUSY)


def changes(
    before: NDArray[np.void], after: NDArray[np.void], fields: Iterable[str]
) -> list[NDArray[np.float64]]:
    """By how much each of *fields* grew in each row of *after*; NaN for a port that is new."""
    order = np.argsort(before["id"])
    known = before["id"][order]
    index = np.minimum(np.searchsorted(known, after["id"]), max(0, len(known) - 1))
    found = []
    for field in fields:
        grown = np.full(len(after), np.nan)
        if len(known):
            same = known[index] == after["id"]
            earlier = before[field][order[index[same]]].astype(np.float64)
            grown[same] = after[field][same].astype(np.float64) - earlier
        found.append(grown)
    return found
