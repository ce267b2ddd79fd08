# SPDX-License-Identifier: Apache-2.0
"""
Records as columns, and the description of them that each capture carries.

A capture is read by the names of its fields: one that was written with another
event schema becomes records of today's, with what it did not know as unknown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The kernel's own fields of a record in the ring; a capture has no ring.
_RING = ("ring_length", "ring_page")
#: The only kinds of numbers and text that a field may be.
_FORMAT = re.compile(r"[<|]?(?:[ui][1248]|S\d{1,2})")
_MOST_FIELDS = 64
_COUNT_BYTES = 4

Fields = list[list[Any]]


def describe() -> dict[str, Any]:
    """The schema of today's events, as JSON has it."""
    kinds = {
        name: {
            "id": kind.id,
            "classes": list(kind.classes),
            "fields": _fields(events.RECORDS[name]),
        }
        for name, kind in events.KINDS.items()
    }
    return {"header": _fields(events.RECORD), "kinds": kinds, "classes": events.CLASSES}


def _fields(dtype: np.dtype[np.void]) -> Fields:
    """Name, format and length of each field but the ring's."""
    result: Fields = []
    for name in dtype.names or ():
        if name not in _RING:
            base, shape = dtype[name].base, dtype[name].shape
            result.append([name, base.str, shape[0] if shape else 0])
    return result


def _dtype(fields: Any) -> np.dtype[np.void]:
    """The dtype that *fields* describe; CaptureError for what is no such description."""
    try:
        if len(fields) > _MOST_FIELDS:
            raise CaptureError("its schema has too many fields")
        made = []
        for name, kind, length in fields:
            if not _FORMAT.fullmatch(kind) or not 0 <= int(length) <= _MOST_FIELDS:
                raise CaptureError(f"its schema has a field of the kind {kind!r}")
            made.append((str(name), kind, (int(length),)) if length else (str(name), kind))
        return np.dtype(made)
    except (TypeError, ValueError) as error:
        raise CaptureError(f"its schema cannot be read: {error}") from None


#: A record without the ring's fields.
STORED = _dtype(_fields(events.RECORD))


def pack(records: NDArray[np.void]) -> bytes:
    """Some records of ``events.RECORD``, a column after the other."""
    parts = [len(records).to_bytes(_COUNT_BYTES, "little")]
    for name in STORED.names or ():
        column = records[name]
        # The words of the body become columns too: most of them repeat, or are zero.
        parts.append(np.ascontiguousarray(column.T if column.ndim > 1 else column).tobytes())
    return b"".join(parts)


def _unpack(payload: bytes, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    count = int.from_bytes(payload[:_COUNT_BYTES], "little")
    if len(payload) != _COUNT_BYTES + count * dtype.itemsize:
        raise CaptureError("a block of records has another size than its records")
    rows = np.zeros(count, dtype)
    offset = _COUNT_BYTES
    for name in dtype.names or ():
        base, shape = dtype[name].base, dtype[name].shape
        length = shape[0] if shape else 1
        column = np.frombuffer(payload, base, count * length, offset)
        rows[name] = column.reshape(length, count).T if shape else column
        offset += column.nbytes
    return rows


class Schema:
    """Reads the records of a capture that was written with *described*."""

    def __init__(self, described: Any) -> None:
        self._same = described == describe()
        self.unknown: dict[str, int] = {}
        if self._same:
            return
        try:
            self._header = _dtype(described["header"])
            kinds = described["kinds"]
            self._kinds = {
                int(kind["id"]): (
                    str(name),
                    _dtype(kind["fields"]),
                    [str(c) for c in kind["classes"]],
                )
                for name, kind in kinds.items()
            }
            self._classes = int(described["classes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CaptureError(f"its schema cannot be read: {error!r}") from None
        if not {"time_ns", "kind", "class"} <= set(self._header.names or ()):
            raise CaptureError("its schema knows no time, kind and class")
        if not 0 < self._classes <= 256 or len(self._kinds) > 1024:
            raise CaptureError("its schema has no sensible number of classes and kinds")

    def records(self, payload: bytes) -> NDArray[np.void]:
        """The records of a block, as ``events.RECORD``; those of kinds we do not know left out."""
        if self._same:
            rows = _unpack(payload, STORED)
            known = rows["kind"] < len(events.KINDS)
            return _in_ring(rows if known.all() else rows[known])
        rows = _unpack(payload, self._header)
        made = np.zeros(len(rows), events.RECORD)
        keep = np.zeros(len(rows), bool)
        for number in np.unique(rows["kind"]).tolist():
            chosen = rows["kind"] == number
            name, dtype, classes = self._kinds.get(number, (f"kind {number}", None, []))
            if name not in events.KINDS or dtype is None or dtype.itemsize != rows.dtype.itemsize:
                self.unknown[name] = self.unknown.get(name, 0) + int(chosen.sum())
                continue
            made[chosen] = _translate(rows[chosen].view(dtype), name, classes)
            keep |= chosen
        return made[keep]

    def by_class(self, values: NDArray[np.void]) -> NDArray[np.void]:
        """A map's values ``(kinds, classes)`` as they were written, at today's places."""
        made = np.zeros((len(events.KINDS), events.CLASSES), values.dtype)
        if self._same:
            return values if values.shape == made.shape else made
        for number, (name, _, classes) in self._kinds.items():
            today = events.KINDS.get(name)
            if today is None or number >= len(values):
                continue
            for place, label in enumerate(classes[: values.shape[1]]):
                if label in today.classes:
                    made[today.id, today.classes.index(label)] = values[number, place]
        return made

    @property
    def shape(self) -> tuple[int, int]:
        """Kinds and classes that a map of this capture has room for."""
        if self._same:
            return len(events.KINDS), events.CLASSES
        return max(self._kinds, default=-1) + 1, self._classes


def _in_ring(rows: NDArray[np.void]) -> NDArray[np.void]:
    made = np.zeros(len(rows), events.RECORD)
    for name in STORED.names or ():
        made[name] = rows[name]
    return made


def _translate(old: NDArray[np.void], name: str, classes: list[str]) -> NDArray[np.void]:
    """Records of one kind, by the names of their fields and classes."""
    kind = events.KINDS[name]
    made = np.zeros(len(old), events.RECORDS[name])
    for field in made.dtype.names or ():
        if field in ("kind", "class", "reserved", *_RING):
            continue
        if field in (old.dtype.names or ()) and made[field].shape == old[field].shape:
            made[field] = old[field]
        elif field in kind.absent:
            made[field] = kind.absent[field]
    made["kind"] = kind.id
    places = np.zeros(256, np.uint8)
    for place, label in enumerate(classes[:256]):
        places[place] = kind.classes.index(label) if label in kind.classes else 0
    made["class"] = places[old["class"]]
    return made.view(events.RECORD)
