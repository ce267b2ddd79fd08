# SPDX-License-Identifier: Apache-2.0
"""Writes a capture as blocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture import facts, schema
from scope_ebpf.capture.frames import BlockKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.labels import Label
    from scope_ebpf.capture.store import Store

#: Names that are kept to be written again with a ring.
_KEPT = 1 << 17
#: Kinds of objects with names.
_TABLES = ("processes", "atoms", "addresses", "marked")
#: Names in one block.
_AT_ONCE = 4096
_COUNT = np.dtype("<u8")


class Names:
    """All names of processes, atoms, addresses and marked functions, and those not written yet."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, Any]] = {table: {} for table in _TABLES}
        self._fresh: dict[str, dict[int, Any]] = {table: {} for table in _TABLES}

    def process(self, term: int, label: Label) -> None:
        """Add the label of a process; an unchanged one is not written again."""
        facts = [label.name, label.initial_call, label.behaviour, label.module]
        if any(facts) and self._known["processes"].get(term) != facts:
            self._know("processes", term, facts)

    def atom(self, term: int, text: str) -> None:
        """Add the text of an atom."""
        self._know("atoms", term, text)

    def address(self, address: int, text: str) -> None:
        """Add the function of an address of code, Erlang's or native."""
        self._know("addresses", address, text)

    def marked(self, number: int, text: str) -> None:
        """Add the marked function with this id."""
        self._know("marked", number, text)

    def _know(self, table: str, key: int, value: Any) -> None:
        self._known[table][key] = self._fresh[table][key] = value
        _bound(self._known[table])

    def fresh(self) -> Iterator[bytes]:
        """Names that were not written before, as payloads of blocks."""
        yield from _payloads(self._fresh)
        for table in self._fresh.values():
            table.clear()

    def all(self) -> Iterator[bytes]:
        """Everything that is kept, as payloads of blocks."""
        yield from _payloads(self._known)


def _bound(known: dict[int, Any]) -> None:
    if len(known) > _KEPT:
        del known[next(iter(known))]


def _payloads(tables: dict[str, dict[int, Any]]) -> Iterator[bytes]:
    for name, table in tables.items():
        rows = [[key, value] for key, value in table.items()]
        for first in range(0, len(rows), _AT_ONCE):
            yield _json({name: rows[first : first + _AT_ONCE]})


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class Writer:
    """Writes to *store*; :attr:`full` is set once it had no room for a block."""

    def __init__(self, store: Store, names: Names) -> None:
        self._store = store
        self._names = names
        self.full = False
        #: Records that were kept, and those for which there was no room.
        self.events = self.left_out = 0

    def head(self, head: facts.Head) -> None:
        """Write the head block, which all others need."""
        self._put(BlockKind.HEAD, head_payload(head))

    def records(self, records: NDArray[np.void]) -> None:
        """A batch, shape ``(n,)`` of ``events.RECORD``; the names that it needs come first."""
        for payload in self._names.fresh():
            self._put(BlockKind.NAMES, payload)
        if self._put(BlockKind.RECORDS, schema.pack(records)):
            self.events += len(records)
        else:
            self.left_out += len(records)

    def samples(self, samples: dict[str, Any]) -> None:
        """Write samples of some moments."""
        self._put(BlockKind.SAMPLES, _json(samples))

    def maps(
        self, time_ns: int, hits: int, tallies: NDArray[np.void], durations: NDArray[np.void]
    ) -> None:
        """The session's maps at *time_ns*, both of shape ``(kinds, classes, cpus)``."""
        self._put(BlockKind.MAPS, maps_payload(time_ns, hits, tallies, durations))

    def end(self, end: facts.End) -> None:
        """The last block."""
        for payload in self._names.fresh():
            self._put(BlockKind.NAMES, payload)
        self._put(BlockKind.END, end_payload(end))

    def _put(self, kind: BlockKind, payload: bytes) -> bool:
        if self.full and kind not in (BlockKind.MAPS, BlockKind.END):
            return False  # nothing may be missing in the middle
        fits = self._store.put(kind, payload)
        self.full = self.full or not fits
        return fits


def head_payload(head: facts.Head) -> bytes:
    """The first block's payload."""
    return _json(facts.head_as_json(head, schema.describe()))


def end_payload(end: facts.End) -> bytes:
    """The last block's payload."""
    return _json(end.as_json())


def maps_payload(
    time_ns: int, hits: int, tallies: NDArray[np.void], durations: NDArray[np.void]
) -> bytes:
    """Time and hits, then each field of both maps, all CPUs together."""
    parts = [np.array([time_ns, hits], _COUNT).tobytes()]
    for values, dtype in ((tallies, events.COUNTERS), (durations, events.HISTOGRAM)):
        names = dtype.names or ()
        parts += [values[name].sum(axis=2).astype(_COUNT).tobytes() for name in names]
    return b"".join(parts)
