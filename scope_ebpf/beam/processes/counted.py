# SPDX-License-Identifier: Apache-2.0
"""
Whether the table of processes counts those that are in it.

A VM that hides its symbols has its table found by the shape of what lies behind the count
(OTP-25.2.3 erts/emulator/beam/erl_ptab.h, ErtsPTab), and so the count is compared with the slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.target import Target

#: A symbol that a VM has unless it hides them.
_WHOLE_PROCESS = "erts_invalid_process"
#: Slots that are read to count them, how often, and the bytes of a count.
_MOST_SLOTS, _READINGS, _COUNT = 1 << 20, 4, 4
#: A slot that is being taken has flags.
_FLAGS = 7
#: Processes that may be counted and have no slot yet, in a VM that stands still there.
_HALF_MADE = 8
#: Processes that may begin and end while the slots are read, also of a few.
_WHILE_READ = 16

#: With which layout the table of a VM was compared.
_compared: WeakKeyDictionary[Memory, Layout] = WeakKeyDictionary()


def check_rows(target: Target) -> None:
    """
    Compare the count with the slots in use, once for each VM and layout.

    Only where the VM hides its symbols, whose sizes decide else. Reads 2 MB.
    Raises ReadRefusedError.
    """
    layout = target.layout
    if target.find(_WHOLE_PROCESS) is not None or _compared.get(target.memory) is layout:
        return
    offsets = {name: layout.offset("ErtsPTab", f"vola.tile.{name}") for name in ("count", "aid_ix")}
    if offsets["aid_ix"] != offsets["count"] + _COUNT:
        raise _refused(target, "a table counts its rows before it takes slots")
    if not _counts_them(target, target.address("erts_proc")):
        raise _refused(target, "its table of processes counts them")
    _compared[target.memory] = layout


def _counts_them(target: Target, table: int) -> bool:
    """
    Whether the count is that of the slots in use, in one of several readings.

    A VM that makes and ends processes all the time is compared roughly, and so is one with more
    slots than are read. One that stands still may do so while it makes some.
    """
    memory, layout = target.memory, target.layout
    count = table + layout.offset("ErtsPTab", "vola.tile.count")
    slots = memory.u32(table + layout.offset("ErtsPTab", "r.o.max"))
    readings = []
    for _ in range(_READINGS):
        before = memory.u32(count)
        seen = _used(target, table, min(slots, _MOST_SLOTS))
        reading = _Reading(before, seen, memory.u32(count))
        if reading.fits(0):
            return True
        readings.append(reading)
    changes = len(set(readings)) > 1
    return any(
        one.fits(one.roughly if changes else _HALF_MADE, whole=slots <= _MOST_SLOTS)
        for one in readings
    )


class _Reading(NamedTuple):
    """Slots in use, and the count before and after they were read."""

    before: int
    seen: int
    after: int

    @property
    def roughly(self) -> int:
        """How far slots and counts may be apart in a VM that makes and ends processes."""
        return max(_HALF_MADE + _WHILE_READ, max(self.before, self.after) // 2)

    def fits(self, apart: int, *, whole: bool = True) -> bool:
        """Whether both agree to *apart*; slots that were not *whole* read may be fewer."""
        low, high = sorted((self.before, self.after))
        # What jumps further while slots are read is no count.
        if high - low > self.roughly:
            return False
        return self.seen <= high + apart and (not whole or self.seen >= low - apart)


def _used(target: Target, table: int, slots: int) -> int:
    memory, layout = target.memory, target.layout
    first = memory.u64(table + layout.offset("ErtsPTab", "r.o.tab"))
    invalid = memory.u64(table + layout.offset("ErtsPTab", "r.o.invalid_element"))
    words = memory.words(first, slots)
    used = words[words != 0]
    return int(((used != invalid) & (used % (_FLAGS + 1) == 0)).sum())


def _refused(target: Target, check: str) -> ReadRefusedError:
    return ReadRefusedError(
        f"process {target.pid} (ERTS {target.erts_version}): the check that {check} does not hold, "
        f"so {target.layout} does not fit and its tables are not read"
    )
