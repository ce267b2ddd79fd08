# SPDX-License-Identifier: Apache-2.0
"""Ports of one look or two: whose they are, what waits for them, and what goes through."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.beam.held.ports import PortTable, changes, is_busy
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.runs.held import change

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import HeldPort, PortsDocument

#: By what rows are sorted, largest first.
KEYS = ("queue", "traffic", "bytes")
#: Drivers that are counted.
_DRIVERS = 20


def ports_of(target: Target, duration: float, sort: str, limit: int) -> PortsDocument:
    """The *limit* largest ports by *sort*, one of KEYS; raises ScopeError."""
    table = PortTable(target)
    found = change(target, table.read, duration, _traffic)
    rows = found.reading.rows
    busy = np.array([is_busy(flags) for flags in rows["flags"].tolist()], np.bool_)
    both = rows["bytes_in"].astype(np.float64) + rows["bytes_out"]
    keys: dict[str, Callable[[], NDArray[Any]]] = {
        "queue": lambda: rows["queued"],
        "traffic": lambda: np.nan_to_num(found.first + found.second, nan=-1),
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
        "ports": _ports(target, table, rows[order], found.first[order], found.second[order]),
        "notes": notes,
    }


def _traffic(before: NDArray[np.void], after: NDArray[np.void]) -> list[NDArray[np.float64]]:
    return changes(before, after, ("bytes_in", "bytes_out"))


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
