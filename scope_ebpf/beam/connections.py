# SPDX-License-Identifier: Apache-2.0
"""
The connections to other nodes: how many, what waits to be sent, which are busy.

Sources: OTP-25.2.3 erts/emulator/beam/erl_node_tables.h (struct dist_entry_) and .c (the
lists of connected nodes). The lists change while they are read: an entry that is
not connected any more, or does not read as one, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.beam.terms import ATOM_MASK, ATOM_TAG
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.target import Target

#: The lists of connected nodes, by what the VM calls them.
_LISTS = {"visible": "erts_visible_dist_entries", "hidden": "erts_hidden_dist_entries"}
TYPES = tuple(_LISTS)
#: No list is followed further.
_MOST = 4096
#: enum dist_entry_state, and a bit of qflgs.
_CONNECTED, _BUSY = 2, 1 << 0


@dataclass(frozen=True, slots=True)
class Connections:
    """*nodes* that are connected, by :data:`TYPES`; *queued* bytes, and *busy* connections."""

    nodes: tuple[int, ...]
    queued: int
    busy: int


class ConnectionReader:
    """Reads the connections of one VM. ReadRefusedError where the lists are hidden."""

    def __init__(self, target: Target) -> None:
        self._memory = target.memory
        self._heads = [target.address(name) for name in _LISTS.values()]
        self._size = target.layout.size("DistEntry")
        self._at = {
            name: target.layout.offset("DistEntry", name)
            for name in ("next", "sysname", "state", "qflgs", "qsize")
        }

    def read(self) -> Connections:
        """Follow the lists. Raises ReadRefusedError."""
        counts, queued, busy = [], 0, 0
        for head in self._heads:
            entries = self._entries(self._memory.u64(head))
            counts.append(len(entries))
            queued += sum(size for size, _ in entries)
            busy += sum(is_busy for _, is_busy in entries)
        return Connections(tuple(counts), queued, busy)

    def _entries(self, place: int) -> list[tuple[int, bool]]:
        """What waits for each connected node of a list, and whether it is busy."""
        found: list[tuple[int, bool]] = []
        for _ in range(_MOST):
            if not place:
                return found
            raw = self._memory.read(place, self._size)
            value = {
                name: int.from_bytes(raw[at : at + 8], "little") for name, at in self._at.items()
            }
            if value["sysname"] & ATOM_MASK != ATOM_TAG:
                return found  # it is being freed
            if value["state"] & 0xFFFFFFFF == _CONNECTED:
                found.append((value["qsize"], bool(value["qflgs"] & _BUSY)))
            place = value["next"]
        raise ReadRefusedError(f"a list of nodes has more than {_MOST} entries")
