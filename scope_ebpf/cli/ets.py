# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ets``: the ETS tables of a VM, with owner, size and growth."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.held.tables import TableReader
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import above_zero, add_duration, add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.held import looks
from scope_ebpf.runs.held_tables import described, growth
from scope_ebpf.sinks.plain import plain, say, short, spelled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.held.tables import TableReading
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import EtsDocument, EtsTable

#: By what rows are sorted, largest first.
_KEYS = ("memory", "objects", "growth")
_ROW = "{:<30.30} {:<26.26} {:<13} {:<9} {:>8} {:>8} {:>8}"
_HEADINGS = ("TABLE", "OWNER", "TYPE", "ACCESS", "OBJECTS", "MEMORY", "GROWTH/S")


@dataclass(frozen=True, slots=True)
class Growth:
    """The tables at the second of two looks, and how fast each grew since the first."""

    reading: TableReading
    #: Seconds between the looks; 0 for one look.
    seconds: float
    #: Per second, shape ``(n,)``; NaN for a table that the first look did not see.
    objects: NDArray[np.float64]
    bytes: NDArray[np.float64]
    cpu_seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ets``."""
    add_target(parser)
    add_duration(parser, "1s")
    parser.add_argument(
        "-s",
        "--sort",
        choices=_KEYS,
        default="memory",
        help="by memory, objects, or growth of memory (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, which shows no growth",
    )
    parser.add_argument("--limit", type=above_zero, default=20, help="rows (default: %(default)s)")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    duration: float | None = arguments.duration
    if duration is None:
        raise UsageError("ets looks twice: say how long after the first, such as --duration 1s")
    if arguments.once and arguments.sort == "growth":
        raise UsageError("one look shows no growth: leave out --once, or sort by memory")
    target = target_of(arguments)
    reader = TableReader(target)
    found = _growth(*looks(target, reader.read, 0.0 if arguments.once else duration))
    document = _document(target, found, arguments.sort, arguments.limit)
    if arguments.format == "text":
        say("\n".join(_lines(document)), sys.stdout)
    else:
        print_document(document, arguments.format)
    return 0


def _growth(before: TableReading, after: TableReading | None, seconds: float) -> Growth:
    if after is None:
        unknown = np.full(len(before.rows), np.nan)
        return Growth(before, 0.0, unknown, unknown, before.seconds)
    objects, memory = growth(before.rows, after.rows)
    cpu = before.seconds + after.seconds
    return Growth(after, seconds, objects / seconds, memory / seconds, cpu)


def _document(target: Target, found: Growth, sort: str, limit: int) -> EtsDocument:
    rows = found.reading.rows
    keys: dict[str, Callable[[], NDArray[Any]]] = {
        "memory": lambda: rows["memory_bytes"],
        "objects": lambda: rows["objects"],
        "growth": lambda: np.nan_to_num(found.bytes, nan=-np.inf),
    }
    order = np.argsort(-keys[sort]().astype(np.float64), kind="stable")[:limit]
    notes = []
    if found.reading.cut:
        notes.append(f"there are more tables than the {len(rows):,} that were read")
    return {
        "schema": 1,
        "target": target.as_json(),
        "duration_seconds": round(found.seconds, 3),
        "tables_total": found.reading.total,
        "read": len(rows),
        "torn": found.reading.torn,
        "memory_bytes": int(rows["memory_bytes"].sum()),
        "seconds": round(found.cpu_seconds, 3),
        "tables": described(target, rows[order], found.objects[order], found.bytes[order]),
        "notes": notes,
    }


def _lines(document: EtsDocument) -> list[str]:
    target = document["target"]
    looked = f"{document['duration_seconds']:.1f} s, " if document["duration_seconds"] else ""
    head = (
        f"{escaped(target['node'] or '?')}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{looked}{document['read']} tables, {short(document['memory_bytes'])} bytes"
    )
    lines = [head, _ROW.format(*_HEADINGS), *map(_line, document["tables"])]
    left = document["read"] - len(document["tables"])
    if left > 0:
        lines.append(f"and {left} tables more")
    if document["torn"]:
        lines.append(f"{document['torn']} tables changed each time they were read: left out")
    return [plain(line) for line in [*lines, *document["notes"]]]


def _line(table: EtsTable) -> str:
    owner = " ".join(filter(None, (table["owner"], table["owner_name"])))
    grown = table["bytes_per_second"]
    growth = "-" if grown is None else f"{'-' * (grown < 0)}{short(abs(grown))}"
    return _ROW.format(
        escaped(spelled(table["name"])),
        escaped(spelled(owner)),
        table["type"],
        table["protection"],
        short(table["objects"]),
        short(table["memory_bytes"]),
        growth,
    )
