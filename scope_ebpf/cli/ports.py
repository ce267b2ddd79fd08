# SPDX-License-Identifier: Apache-2.0
"""``scope-trace ports``: ports of a VM, with driver or program, owner, queue and bytes."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.held.ports import PortTable, changes, is_busy
from scope_ebpf.beam.processes.shapes import escaped
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cli.documents import print_document
from scope_ebpf.cli.options import above_zero, add_duration, add_format
from scope_ebpf.cli.target import add_target, target_of
from scope_ebpf.errors import UsageError
from scope_ebpf.runs.held import looks
from scope_ebpf.sinks.plain import plain, say, short, spelled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.held.ports import PortReading
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import HeldPort, PortsDocument

#: By what rows are sorted, largest first.
_KEYS = ("queue", "traffic", "bytes")
_ROW = "{:<16} {:<24.24} {:<26.26} {:>8} {:>5} {:>8} {:>8} {:>8} {:>8}"
_HEADINGS = ("PORT", "WHAT", "OWNER", "QUEUE", "BUSY", "IN", "OUT", "IN/S", "OUT/S")
#: Drivers that are counted.
_DRIVERS = 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """The ports at the last look, and how much went through each since the first."""

    reading: PortReading
    #: Seconds between the looks; 0 for one look.
    seconds: float
    #: Bytes a second, shape ``(n,)``; NaN for a port that the first look did not see.
    inward: NDArray[np.float64]
    outward: NDArray[np.float64]
    cpu_seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ports``."""
    add_target(parser)
    add_duration(parser, "1s")
    parser.add_argument(
        "-s",
        "--sort",
        choices=_KEYS,
        default="queue",
        help="by queue, traffic between the looks, or bytes of all time (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, which shows no traffic",
    )
    parser.add_argument("--limit", type=above_zero, default=20, help="rows (default: %(default)s)")
    add_format(parser, "text", "json", "jsonl", text="json and jsonl: one document")


def run(arguments: argparse.Namespace) -> int:
    """Look twice, then print; raises ScopeError."""
    duration: float | None = arguments.duration
    if duration is None:
        raise UsageError("ports looks twice: say how long after the first, such as --duration 1s")
    if arguments.once and arguments.sort == "traffic":
        raise UsageError("one look shows no traffic: leave out --once, or sort by queue")
    target = target_of(arguments)
    table = PortTable(target)
    found = _traffic(*looks(target, table.read, 0.0 if arguments.once else duration))
    document = _document(target, table, found, arguments.sort, arguments.limit)
    if arguments.format == "text":
        say("\n".join(_lines(document)), sys.stdout)
    else:
        print_document(document, arguments.format)
    return 0


def _traffic(before: PortReading, after: PortReading | None, seconds: float) -> Traffic:
    if after is None:
        unknown = np.full(len(before.rows), np.nan)
        return Traffic(before, 0.0, unknown, unknown, before.seconds)
    inward, outward = changes(before.rows, after.rows, ("bytes_in", "bytes_out"))
    cpu = before.seconds + after.seconds
    return Traffic(after, seconds, inward / seconds, outward / seconds, cpu)


def _document(
    target: Target, table: PortTable, found: Traffic, sort: str, limit: int
) -> PortsDocument:
    rows = found.reading.rows
    busy = np.array([is_busy(flags) for flags in rows["flags"].tolist()], np.bool_)
    both = rows["bytes_in"].astype(np.float64) + rows["bytes_out"]
    keys: dict[str, Callable[[], NDArray[Any]]] = {
        "queue": lambda: rows["queued"],
        "traffic": lambda: np.nan_to_num(found.inward + found.outward, nan=-1),
        "bytes": lambda: both,
    }
    # A busy port is what one looks for, and the busiest of equals comes first.
    order = np.lexsort(
        (-both, -keys[sort]().astype(np.float64), ~busy if sort == "queue" else both * 0)
    )
    order = order[:limit]
    notes = []
    if found.reading.cut:
        notes.append("the table of ports has more slots than are read")
    return {
        "schema": 1,
        "target": target.as_json(),
        "duration_seconds": round(found.seconds, 3),
        "ports_total": found.reading.total,
        "read": len(rows),
        "torn": found.reading.torn,
        "busy": int(busy.sum()),
        "queued_bytes": int(rows["queued"].sum()),
        "drivers": _drivers(table, rows),
        "seconds": round(found.cpu_seconds, 3),
        "ports": _ports(target, table, rows[order], found.inward[order], found.outward[order]),
        "notes": notes,
    }


def _drivers(table: PortTable, rows: NDArray[np.void]) -> dict[str, int]:
    counts = Counter(name or "?" for name in table.drivers(rows))
    return dict(counts.most_common(_DRIVERS))


def _ports(
    target: Target,
    table: PortTable,
    rows: NDArray[np.void],
    inward: NDArray[np.float64],
    outward: NDArray[np.float64],
) -> list[HeldPort]:
    viewer = Viewer(target, IDENTITY)
    owners = viewer.table.at(viewer.table.slots_of(rows["owner"])).rows
    names = viewer.names.registered(owners), viewer.names.initial_calls(owners)
    called = dict(zip(owners["id"].tolist(), zip(*names, strict=True), strict=True))
    made: list[HeldPort] = []
    for row, name, driver, pid, waiting, came, went in zip(
        rows,
        table.names(rows),
        table.drivers(rows),
        viewer.pids.texts(rows["owner"]),
        table.waiting(rows),
        inward.tolist(),
        outward.tolist(),
        strict=True,
    ):
        registered, call = called.get(int(row["owner"]), (None, None))
        os_pid = int(row["os_pid"])
        made.append(
            {
                "port": table.codec.text(int(row["id"])),
                "name": name,
                "driver": driver,
                "os_pid": os_pid if os_pid > 0 else None,
                "owner": pid,
                "owner_name": registered,
                "initial_call": str(call) if call else None,
                "queued_bytes": int(row["queued"]),
                "busy": is_busy(int(row["flags"])),
                "waiting": waiting,
                "bytes_in": int(row["bytes_in"]),
                "bytes_out": int(row["bytes_out"]),
                "bytes_in_per_second": None if np.isnan(came) else round(came, 1),
                "bytes_out_per_second": None if np.isnan(went) else round(went, 1),
            }
        )
    return made


def _lines(document: PortsDocument) -> list[str]:
    target = document["target"]
    looked = f"{document['duration_seconds']:.1f} s, " if document["duration_seconds"] else ""
    head = (
        f"{escaped(target['node'] or '?')}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{looked}{document['read']:,} ports, {document['busy']} busy, "
        f"{short(document['queued_bytes'])} bytes queued"
    )
    counts = (f"{n:,} {escaped(name)}" for name, n in document["drivers"].items())
    drivers = f"by driver: {', '.join(counts)}"
    lines = [head, drivers, _ROW.format(*_HEADINGS), *map(_line, document["ports"])]
    left = document["read"] - len(document["ports"])
    if left > 0:
        lines.append(f"and {left:,} ports more")
    if document["torn"]:
        lines.append(f"{document['torn']} ports changed each time they were read: left out")
    return [plain(line) for line in [*lines, *document["notes"]]]


def _line(port: HeldPort) -> str:
    called = port["owner_name"] or port["initial_call"]
    owner = " ".join(filter(None, (port["owner"], called)))
    waiting = port["waiting"]
    return _ROW.format(
        port["port"],
        escaped(what(port)),
        escaped(spelled(owner)),
        short(port["queued_bytes"]),
        ("many" if waiting is None else str(waiting)) if port["busy"] else "-",
        short(port["bytes_in"]),
        short(port["bytes_out"]),
        _rate(port["bytes_in_per_second"]),
        _rate(port["bytes_out_per_second"]),
    )


def what(port: HeldPort) -> str:
    """A port's driver, or the program behind it with its process."""
    name, driver = port["name"] or "?", port["driver"] or "?"
    if port["os_pid"] is not None:
        return f"{port['os_pid']}: {name}"
    return driver if name == driver else f"{driver} {name}"


def _rate(value: float | None) -> str:
    return "-" if value is None else short(value)
