# SPDX-License-Identifier: Apache-2.0
"""
Ticks that a peer has missed: each link has a process that counts them in its own state.

Source: OTP-25.2.3 lib/kernel/src/dist_util.erl, con_loop/2 with its records state and tick; the
same in OTP 27.3 and 29. At each tick it looks whether anything came since the last one, and ends
the link when nothing came at so many in a row (``net_tickintensity``). While it waits, both
records lie on its heap, and its stack refers to them. The process of a link that the TCP driver
carries is the owner of its port. OTP before 25 has no record of its state: no ticks are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.moment import HEAPS
from scope_ebpf.beam.memory.terms import POINTER_MASK, is_atom, is_pid, is_small, small

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.processes.table import ProcessTable

#: Words of stack, and of the larger record with its header.
_STACK, _RECORD = 64, 12
_WORD = np.uint64(8)
#: Headers of the records, their names being the first element.
_STATE, _TICK = 11 << 6, 5 << 6
#: What ``net_tickintensity`` may be.
_LIMITS = range(4, 1001)
#: Columns that do not change while the process waits.
_STANDS = ("pointer", "state", "stop", "htop", "reductions", *HEAPS)


class Ticks(NamedTuple):
    """Ticks at which nothing had come, in a row, and with how many of them the link is lost."""

    missed: int
    limit: int


class TickReader:
    """Reads the processes of links. *table* has all columns. To be used by one thread."""

    def __init__(self, memory: Memory, table: ProcessTable, atoms: Atoms) -> None:
        self._memory, self._table, self._atoms = memory, table, atoms

    def of(self, peers: Mapping[int, str]) -> dict[int, Ticks]:
        """
        Read the ticks of links by the pid term of their processes, given with the peer's name.

        Those that run meanwhile, or have no such state, are left out. Raises ReadRefusedError.
        """
        pids = np.array(list(peers), np.uint64)
        rows = self._rows(pids)
        found = dict(zip(rows["id"].tolist(), self._records(rows), strict=True))
        after = self._rows(pids)
        before = {int(row["id"]): row for row in rows}
        stood = [
            pid
            for pid, row in zip(after["id"].tolist(), after, strict=True)
            if pid in before and all(row[name] == before[pid][name] for name in _STANDS)
        ]
        ticks = {pid: self._ticks(found[pid], peers[pid]) for pid in stood}
        return {pid: one for pid, one in ticks.items() if one}

    def _rows(self, pids: NDArray[np.uint64]) -> NDArray[np.void]:
        rows = self._table.at(self._table.slots_of(pids)).rows
        found: NDArray[np.void] = rows[np.isin(rows["id"], pids)]
        return found

    def _records(self, rows: NDArray[np.void]) -> Iterator[list[list[int]]]:
        """Read what the stack of each process refers to: the first words of it."""
        # Up to the end of the stack, below which the heap lies: nothing behind it is read.
        raw, read = self._memory.gather(rows["hend"] - _STACK * _WORD, _STACK * 8)
        words = raw.view(np.uint64)
        small_stack = read & (rows["stack_words"] <= _STACK)
        live = np.arange(_STACK, 0, -1) <= rows["stack_words"][:, None]
        boxed = live & small_stack[:, None] & (words & np.uint64(3) == 2)
        terms, places = np.unique(words[boxed], return_inverse=True)
        values, there = self._memory.gather(terms & np.uint64(POINTER_MASK), _RECORD * 8)
        records = values.view(np.uint64)
        fits = np.flatnonzero(there & np.isin(records[:, 0], (_STATE, _TICK)))
        kept = dict(zip(fits.tolist(), records[fits].tolist(), strict=True))
        ends = np.cumsum(boxed.sum(axis=1)).tolist()
        for first, end in zip([0, *ends], ends, strict=False):
            yield [kept[at] for at in set(places[first:end].tolist()) & kept.keys()]

    def _ticks(self, records: Iterable[list[int]], peer: str) -> Ticks | None:
        """Find the two records; None unless there is one of each, and they fit."""
        states = [one[1:] for one in records if one[0] == _STATE and self._is_state(one[1:], peer)]
        ticks = [one[1:6] for one in records if one[0] == _TICK and self._is_tick(one[1:6])]
        if len(states) != 1 or len(ticks) != 1:
            return None
        limit, (*_, tick, ticked) = small(states[0][3]), map(small, ticks[0][1:])
        if limit not in _LIMITS or not (0 <= tick < limit and 0 <= ticked <= limit):
            return None
        return Ticks((tick - ticked) % limit, limit)

    def _is_state(self, record: list[int], peer: str) -> bool:
        name, kernel, node, limit = record[:4]
        return (
            self._is(name, "state") and is_pid(kernel) and self._is(node, peer) and is_small(limit)
        )

    def _is_tick(self, record: list[int]) -> bool:
        return self._is(record[0], "tick") and all(map(is_small, record[1:]))

    def _is(self, term: int, text: str) -> bool:
        return is_atom(term) and self._atoms.texts([term >> 6])[term >> 6] == text
