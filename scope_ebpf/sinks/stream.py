# SPDX-License-Identifier: Apache-2.0
"""Events as lines, while they happen: JSON for programs, text for people."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from scope_ebpf import events
from scope_ebpf.arrays import distinct
from scope_ebpf.errors import HostError
from scope_ebpf.sinks.columns import add_names, columns_of, wall_offset_ns
from scope_ebpf.sinks.plain import duration, plain, size, spelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from numpy.typing import NDArray

    from scope_ebpf.sinks.columns import Called, Table, Terms

Style = Literal["jsonl", "text"]
#: Each kind of record with its own fields, by its number.
Vocabulary = Sequence[tuple[events.Kind, np.dtype[np.void]]]
_OURS: Vocabulary = [(kind, events.RECORDS[kind.name]) for kind in events.KINDS.values()]


class Stream:
    """
    Writes batches of records to *output*, one event a line, oldest first.

    *who* names processes, given as terms; None where it does not know them. The kinds
    of records are those of *vocabulary*.
    *offset_ns* is added to a record's time to have the time of day; by default the present one.
    *called* names the addresses of long calls.
    """

    def __init__(
        self,
        output: TextIO,
        terms: Terms,
        style: Style,
        who: Callable[[list[int]], dict[int, str | None]] | None = None,
        vocabulary: Vocabulary = _OURS,
        *,
        offset_ns: int | None = None,
        called: Called | None = None,
    ) -> None:
        self._output = output
        self._called = called
        self._terms = terms
        self._who = who
        self._vocabulary = vocabulary
        self._line = _json_lines if style == "jsonl" else _text_lines
        self._offset = wall_offset_ns() if offset_ns is None else offset_ns

    def write(self, records: NDArray[np.void]) -> None:
        """Write all of a batch; raises OSError where the output does, HostError for odd kinds."""
        if not len(records):
            return
        records = records[np.argsort(records["time_ns"], kind="stable")]
        lines = np.empty(len(records), object)
        for number in distinct(records["kind"]).tolist():
            if number >= len(self._vocabulary):
                raise HostError(
                    f"a record of kind {number}, of {len(self._vocabulary)} that are known: the "
                    "BPF objects and this program are of different builds; run `make objects`"
                )
            chosen = records["kind"] == number
            kind, dtype = self._vocabulary[number]
            lines[chosen] = self._lines(kind, dtype, records[chosen])
        self._output.write("\n".join(lines.tolist()) + "\n")
        self._output.flush()

    def _lines(
        self, kind: events.Kind, dtype: np.dtype[np.void], records: NDArray[np.void]
    ) -> list[str]:
        times = (records["time_ns"].astype(np.int64) + self._offset).tolist()
        table = columns_of(kind, dtype, records, self._terms)
        if self._who:
            names = self._names(records)
            if kind == events.KINDS["exit"]:
                # A process that has ended is in no table any more, but its record has its name.
                names = [own or of for own, of in zip(table["name"], names, strict=True)]
            table = {"pid": table.pop("pid"), "who": names, **table}
        if self._called:
            add_names(table, self._called, instead=self._line is _text_lines)
        return self._line(kind.name, times, records["tid"].tolist(), table)

    def _names(self, records: NDArray[np.void]) -> list[str | int | float | None]:
        """The label of each record's process; a pid that came as text cannot be looked up."""
        if self._who is None or (records["flags"] & events.FLAG_TEXT_PID).any():
            return [None] * len(records)
        words = records["process"].tolist()
        names = self._who(words)
        return [names.get(word) for word in words]


def _json_lines(name: str, times: list[int], tids: list[int], table: Table) -> list[str]:
    """The object of each event: seconds since 1970, event, thread, then its own fields."""
    form = f'{{"time":%d.%09d,"event":"{name}","tid":%d'
    cells: list[list[str | int]] = [
        [t // 1_000_000_000 for t in times],
        [t % 1_000_000_000 for t in times],
        list(tids),
    ]
    for label, values in table.items():
        form += f',"{label}":%s'
        cells.append([_json_cell(v) for v in values])
    form += "}"
    return [form % row for row in zip(*cells, strict=True)]


def _json_cell(value: str | float | None) -> str:
    if value is None:
        return "null"
    return _json_text(value) if isinstance(value, str) else repr(value)


#: A pid's text comes again and again.
_json_text = lru_cache(maxsize=65536)(json.dumps)


def _text_lines(name: str, times: list[int], tids: list[int], table: Table) -> list[str]:
    """Time of day, who, what, and the fields that are known."""
    del tids  # of no use in a text line
    labels = [label for label in table if label not in ("pid", "class", "who")]
    what = [f"{name}/{c}" for c in table["class"]] if "class" in table else [name] * len(times)
    names = [spelled(str(w or "-")) for w in table.get("who", ())]
    lines = []
    for row, (moment, pid, event) in enumerate(zip(times, table["pid"], what, strict=True)):
        fields = " ".join(
            _text_field(label, table[label][row])
            for label in labels
            if table[label][row] is not None
        )
        micros = moment % 1_000_000_000 // 1000
        clock = f"{_clock(moment // 1_000_000_000)}.{micros:06d}"
        name = f"{_text_cell(names[row]):<24} " if names else ""
        lines.append(f"{clock} {_text_cell(pid or '-'):<14} {name}{event:<16} {fields}".rstrip())
    return lines


@lru_cache(maxsize=16)
def _clock(second: int) -> str:
    """The time of day; a trace asks for each second many times."""
    return time.strftime("%H:%M:%S", time.localtime(second))


def _text_field(label: str, value: str | float | None) -> str:
    """A field as a person reads it: ``duration=24.2us reclaimed=56.8kB``."""
    for unit, written in (("_seconds", duration), ("_bytes", size)):
        if label.endswith(unit) and isinstance(value, (int, float)):
            return f"{label.removesuffix(unit)}={written(value, '')}"
    return f"{label}={_text_cell(value)}"


def _text_cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.9f}"
    return plain(str(value))
