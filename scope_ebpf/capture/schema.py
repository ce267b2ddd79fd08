# SPDX-License-Identifier: Apache-2.0
"""
Records as columns, and the description of them that each capture carries.

A capture is read by the names of its fields: one that was written with another
event schema becomes records of today's, with fields that it lacks as unknown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.capture.frames import MAX_RAW
from scope_ebpf.capture.values import Value
from scope_ebpf.errors import CaptureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The kernel's own fields of a record in the ring; a capture has no ring.
_RING = ("ring_length", "ring_page")
#: The only kinds of numbers and text that a field may be.
_FORMAT = re.compile(r"[<|]?(?:[ui][1248]|S[1-9]\d?)")
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
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


def _dtype(fields: Value) -> np.dtype[np.void]:
    """The dtype that *fields* describe; CaptureError for what is no such description."""
    made: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for field in fields.items(_MOST_FIELDS):
        name, kind, length = field.row(3)
        if not _NAME.fullmatch(name.text()) or name.raw in [other[0] for other in made]:
            name.wrong("a name of its own for the field")
        if not _FORMAT.fullmatch(kind.text()):
            kind.wrong("a kind of number or text")
        count = length.whole(_MOST_FIELDS)
        made.append((name.raw, kind.raw, (count,)) if count else (name.raw, kind.raw))
    return np.dtype(made)


_TODAY = describe()
#: A record without the ring's fields.
STORED = _dtype(Value(_fields(events.RECORD), "the schema of today"))
#: Records in one block at most: a block of today's has no room for more, nor has memory.
_MOST_RECORDS = MAX_RAW // STORED.itemsize
#: Fields that every header must have, each one whole number.
_NEEDED = ("time_ns", "kind", "class")
#: Largest numbers of a kind and of a class.
_MOST_KINDS, _MOST_CLASSES = 1 << 16, 256
#: Kinds that are not known and are counted by their names; all others are counted as one.
_NAMED = 64
_OTHERS = "others"


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
    if count > _MOST_RECORDS:
        raise CaptureError(f"a block of records claims {count:,} of them")
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


class _Kind(NamedTuple):
    """One kind of event as a capture has it."""

    name: str
    dtype: np.dtype[np.void]
    classes: list[str]


class Schema:
    """
    Reads the records of a capture that was written with *described*.

    CaptureError names the part that is invalid.
    """

    def __init__(self, described: Value) -> None:
        self._same = described.raw == _TODAY
        self.unknown: dict[str, int] = {}
        self._header = STORED
        self._kinds: dict[int, _Kind] = {}
        self._classes = events.CLASSES
        if not self._same:
            self._describe(described)

    def _describe(self, described: Value) -> None:
        self._classes = described["classes"].whole(_MOST_CLASSES, 1)
        for name, kind in described["kinds"].fields(1024):
            classes = kind["classes"].items(_MOST_CLASSES)
            self._kinds[kind["id"].whole(_MOST_KINDS - 1)] = _Kind(
                name, _dtype(kind["fields"]), [label.text(64) for label in classes]
            )
        self._header = _header(described["header"])

    @property
    def names(self) -> set[str]:
        """The kinds that the capture knows, by their names."""
        return set(events.KINDS) if self._same else {kind.name for kind in self._kinds.values()}

    def records(self, payload: bytes) -> NDArray[np.void]:
        """The records of a block, as ``events.RECORD``; those of unknown kinds left out."""
        if self._same:
            rows = _unpack(payload, STORED)
            known = rows["kind"] < len(events.KINDS)
            return _in_ring(rows if known.all() else rows[known])
        rows = _unpack(payload, self._header)
        made = np.zeros(len(rows), events.RECORD)
        keep = np.zeros(len(rows), bool)
        for number, kind in self._kinds.items():
            if kind.name in events.KINDS and kind.dtype.itemsize == rows.dtype.itemsize:
                chosen = rows["kind"] == number
                made[chosen] = _translate(rows[chosen].view(kind.dtype), kind)
                keep |= chosen
        self._count_unknown(rows["kind"][~keep])
        return made[keep]

    def _count_unknown(self, numbers: NDArray[np.void]) -> None:
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            kind = self._kinds.get(int(number))
            name = kind.name if kind else f"kind {number}"
            if name not in self.unknown and len(self.unknown) >= _NAMED:
                name = _OTHERS
            self.unknown[name] = self.unknown.get(name, 0) + int(count)

    def by_class(self, values: NDArray[np.void]) -> NDArray[np.void]:
        """A map's values ``(kinds, classes)`` as they were written, at today's indexes."""
        made = np.zeros((len(events.KINDS), events.CLASSES), values.dtype)
        if self._same:
            return values if values.shape == made.shape else made
        for number, kind in self._kinds.items():
            today = events.KINDS.get(kind.name)
            if today is None:
                continue
            for column, label in enumerate(kind.classes[: values.shape[1]]):
                if label in today.classes:
                    made[today.id, today.classes.index(label)] = values[number, column]
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


def _header(fields: Value) -> np.dtype[np.void]:
    """The fields common to all records of a capture, with a time, a kind and a class."""
    dtype = _dtype(fields)
    for name in _NEEDED:
        if name not in (dtype.names or ()) or dtype[name].kind != "u":
            fields.wrong(f"a header with the unsigned number {name}")
    return dtype


def _translate(old: NDArray[np.void], written: _Kind) -> NDArray[np.void]:
    """Records of one kind, by the names of their fields and classes."""
    kind = events.KINDS[written.name]
    made = np.zeros(len(old), events.RECORDS[written.name])
    for field in made.dtype.names or ():
        if field in ("kind", "class", "reserved", *_RING):
            continue
        if field in (old.dtype.names or ()) and _alike(made.dtype[field], old.dtype[field]):
            made[field] = old[field]
        elif field in kind.absent:
            made[field] = kind.absent[field]
    made["kind"] = kind.id
    if "class" in (old.dtype.names or ()) and old.dtype["class"].kind == "u":
        numbers = np.minimum(old["class"].astype(np.uint64), _MOST_CLASSES)
        made["class"] = _classes(kind, written.classes)[numbers]
    return made.view(events.RECORD)


def _alike(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return one.shape == other.shape and one.base.kind == other.base.kind


def _classes(kind: events.Kind, labels: list[str]) -> NDArray[np.uint8]:
    """Today's class of each number, with a last entry for all numbers beyond."""
    today = np.zeros(_MOST_CLASSES + 1, np.uint8)
    for number, label in enumerate(labels):
        today[number] = kind.classes.index(label) if label in kind.classes else 0
    return today
