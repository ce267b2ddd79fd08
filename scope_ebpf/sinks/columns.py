# SPDX-License-Identifier: Apache-2.0
"""
Records as columns of text, ready for a line each.

Everything is done a column at a time: a trace of 100,000 events a second leaves
ten microseconds for a line, and a loop over fields would take them all.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scope_ebpf import events
from scope_ebpf.arrays import distinct, grouped
from scope_ebpf.sinks.plain import spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WORD_BYTES = 8
#: Readings of two clocks.
_READINGS = 5
#: The columns of some events, by label.
Table = dict[str, list[str | int | float | None]]


class Terms(Protocol):
    """Text of terms; ``beam.processes.term_text.TermText`` is one."""

    def texts(self, terms: list[int], *, text_pids: bool) -> list[str | None]:
        """The text of each term, None for an absent one."""

    def marked(self, number: int) -> str | None:
        """The function with this id in its markers, ``M:F/A``; None where it is not known."""


class Called(Protocol):
    """Names the addresses of a long call; None for one without a name."""

    def function(self, address: int) -> str | None:
        """The Erlang code that it came from."""

    def symbol(self, address: int) -> str | None:
        """The C function."""


#: The addresses of a long or a marked call, the column of each one's name, and who knows it.
CALLED: tuple[tuple[str, str, Callable[[Called], Callable[[int], str | None]]], ...] = (
    ("code", "function", lambda called: called.function),
    ("native", "symbol", lambda called: called.symbol),
    ("caller", "called_from", lambda called: called.function),
)


def add_names(table: Table, called: Called, *, instead: bool = False) -> None:
    """Put names beside the addresses of a table of calls, or *instead* of them."""
    for address, label, of in CALLED:
        if address not in table:
            continue
        addresses = {word for word in table[address] if isinstance(word, int)}
        names = {word: of(called)(word) for word in addresses}
        found = [names.get(word) if isinstance(word, int) else None for word in table[address]]
        if instead:
            texts = [spelled(name) if name else None for name in found]
            table[address] = [n or c for n, c in zip(texts, table[address], strict=True)]
        else:
            table[label] = [*found]


def wall_offset_ns() -> int:
    """Difference of the time of day and the monotonic time, ns."""
    # A thread may be descheduled between the two clocks: the quickest of some readings counts.
    readings = [
        (time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(_READINGS)
    ]
    before, now, after = min(readings, key=lambda times: times[2] - times[0])
    return now - (before + after) // 2


def columns(name: str, records: NDArray[np.void], terms: Terms) -> Table:
    """
    The fields of *records*, all of kind *name*, in units for people.

    ns become ``_seconds``, words become ``_bytes``, terms become text; None is an
    absent value. The header's time is left to the caller.
    """
    return columns_of(events.KINDS[name], events.RECORDS[name], records, terms)


def columns_of(
    kind: events.Kind, dtype: np.dtype[np.void], records: NDArray[np.void], terms: Terms
) -> Table:
    """Like :func:`columns`, for any *kind*; *records* are reinterpreted as *dtype*."""
    rows = np.ascontiguousarray(records).view(dtype)
    text_pids = bool((rows["flags"] & events.FLAG_TEXT_PID).any())
    result: Table = {"pid": list(_terms(rows["process"], terms, text_pids=text_pids))}
    if len(kind.classes) > 1:
        names = np.array([*kind.classes, *[""] * (256 - len(kind.classes))], object)
        result["class"] = names[rows["class"]].tolist()
    for field in (rows.dtype.names or ())[_HEADER_FIELDS:]:
        if field == "reserved":
            continue
        if kind.units.get(field) == "form":
            result |= _form(rows[field])
            continue
        if kind.units.get(field) == "mark":
            ids = rows[field].tolist()
            found = {number: terms.marked(number) for number in set(ids)}
            result[field] = [found[number] for number in ids]
            continue
        label, values = _column(kind, field, rows[field], terms, text_pids=text_pids)
        result[label] = values
    if "mark" in kind.units.values():
        # A function without arguments has anything in the register of the first one.
        entries = zip(result["class"], result["function"], result["tag"], strict=True)
        result["tag"] = [
            None if how == "entry" and str(name).endswith("/0") else tag
            for how, name, tag in entries
        ]
    return result


_HEADER_FIELDS = len(events.RECORD.names or ()) - 1


def _column(
    kind: events.Kind, field: str, values: NDArray[np.void], terms: Terms, *, text_pids: bool
) -> tuple[str, list[str | int | float | None]]:
    unit = kind.units.get(field)
    absent = kind.absent.get(field)
    if unit == "remote":
        return field, remote_texts(values, terms)
    if unit in ("atom", "atom_index"):
        atoms = values if unit == "atom" else atoms_of(values)
        return field, list(_terms(atoms, terms, text_pids=False))
    if unit in ("eterm", "loss"):
        texts = _terms(values, terms, text_pids=text_pids)
        losses = _LOSSES if unit == "loss" else {}
        return field, [losses.get(text, text) for text in texts]
    if values.dtype.kind == "S":
        return field, [v.decode("latin-1") for v in values.tolist()]
    missing = values == absent if absent is not None else np.zeros(len(values), bool)
    label: str
    scaled: NDArray[Any]
    if unit == "ns":
        label, scaled = f"{field.removesuffix('_ns')}_seconds", values.astype(np.float64) / 1e9
    elif unit == "words":
        label, scaled = f"{field}_bytes", values.astype(np.uint64) * np.uint64(WORD_BYTES)
    else:
        label, scaled = field, values
    if not missing.any():
        return label, scaled.tolist()
    column = scaled.astype(object)
    column[missing] = None
    return label, column.tolist()


#: The VM ends a connection for this reason, and reports the other one (OTP-25.2.3 dist.c:1060).
_LOSSES: dict[str | None, str] = {"normal": "connection_closed"}

#: What a message is, by the number in the highest byte of its form; None for one that is unknown.
FORMS = np.array([None, *events.FORMS[1:], *[None] * (256 - len(events.FORMS))], object)
FORM_SHIFT = 56
#: The low bits of the field: the reference of a call.
REFERENCE = (1 << 50) - 1
_REMOTE_SHIFT, _SERIAL_SHIFT = 62, 28


def _form(values: NDArray[np.void]) -> Table:
    """What each message is, and the reference of its call; None where there is none."""
    words = values.astype(np.uint64)
    references = (words & np.uint64(REFERENCE)).astype(object)
    references[references == 0] = None
    forms = FORMS[(words >> np.uint64(FORM_SHIFT)).astype(np.intp)]
    return {"form": forms.tolist(), "reference": references.tolist()}


def remote_texts(values: NDArray[np.void], terms: Terms) -> list[str | int | float | None]:
    """The receivers of packets: pids as the other node writes them, names, None for references."""
    made = {value: _remote(value, terms) for value in distinct(values).tolist()}
    return [made[value] for value in values.tolist()]


def _remote(value: int, terms: Terms) -> str | None:
    what, rest = value >> _REMOTE_SHIFT, value & ((1 << _REMOTE_SHIFT) - 1)
    if what == events.REMOTE_PID:
        return f"<0.{rest & ((1 << _SERIAL_SHIFT) - 1)}.{rest >> _SERIAL_SHIFT}>"
    if what == events.REMOTE_NAME:
        return terms.texts([rest << 6 | _ATOM], text_pids=False)[0]
    return None


#: The tag of an atom (scope_ebpf.beam.memory.terms).
_ATOM = 0x0B


def atoms_of(indices: NDArray[Any]) -> NDArray[np.uint64]:
    """The atoms with these *indices* as terms; 0, which is no term, for 0."""
    words = indices.astype(np.uint64)
    return np.where(words == 0, words, words << np.uint64(6) | np.uint64(_ATOM))


def _terms(values: NDArray[Any], terms: Terms, *, text_pids: bool) -> list[str | None]:
    different, _, where = grouped(values)
    texts = np.array(terms.texts(different.tolist(), text_pids=text_pids), object)
    result: list[str | None] = texts[where].tolist()
    return result
