# SPDX-License-Identifier: Apache-2.0
"""ETS tables of one look or two: which are the largest, and how fast each grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scope_ebpf.beam.held.tables import TableReader, is_named, protection_of, type_of
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.runs.held import change

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import EtsDocument, EtsTable

#: By what rows are sorted, largest first.
KEYS = ("memory", "objects", "growth")


def tables_of(target: Target, duration: float, sort: str, limit: int) -> EtsDocument:
    """The *limit* largest tables by *sort*, one of KEYS; raises ScopeError."""
    found = change(target, TableReader(target).read, duration, growth)
    rows = found.reading.rows
    keys: dict[str, Callable[[], NDArray[Any]]] = {
        "memory": lambda: rows["memory_bytes"],
        "objects": lambda: rows["objects"],
        "growth": lambda: np.nan_to_num(found.second, nan=-np.inf),
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
        "tables": described(target, rows[order], found.first[order], found.second[order]),
        "notes": notes,
    }


def growth(
    before: NDArray[np.void], after: NDArray[np.void]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Objects and bytes more in each row of *after*; NaN for a table that is new."""
    # The address of a table that is gone may be that of another, which has another identifier.
    known = {
        (address, btid): index
        for index, (address, btid) in enumerate(
            zip(before["address"].tolist(), before["btid"].tolist(), strict=True)
        )
    }
    keys = zip(after["address"].tolist(), after["btid"].tolist(), strict=True)
    index = np.fromiter((known.get(key, -1) for key in keys), np.int64, len(after))
    grown = []
    for field in ("objects", "memory_bytes"):
        change = np.full(len(after), np.nan)
        same = index >= 0
        change[same] = after[field][same] - before[field][index[same]]
        grown.append(change)
    return grown[0], grown[1]


def described(
    target: Target,
    rows: NDArray[np.void],
    objects: NDArray[np.float64],
    memory: NDArray[np.float64],
) -> list[EtsTable]:
    """The tables of *rows*, with their growth a second: NaN for what is not known."""
    viewer = Viewer(target, IDENTITY)
    names = viewer.atoms.texts((rows["name"] >> np.uint64(6)).tolist())
    owners = viewer.table.at(viewer.table.slots_of(rows["owner"])).rows
    called = dict(zip(owners["id"].tolist(), viewer.names.registered(owners), strict=True))
    made = []
    for row, pid, more, grown in zip(
        rows, viewer.pids.texts(rows["owner"]), objects.tolist(), memory.tolist(), strict=True
    ):
        status = int(row["status"])
        table = {
            "name": names[int(row["name"]) >> 6] or "?",
            "named": is_named(status),
            "owner": pid,
            "owner_name": called.get(int(row["owner"])),
            "type": type_of(status),
            "protection": protection_of(status),
            "keypos": int(row["keypos"]),
            "compressed": bool(row["compressed"]),
            "objects": int(row["objects"]),
            "memory_bytes": int(row["memory_bytes"]),
            "objects_per_second": None if np.isnan(more) else round(more, 3),
            "bytes_per_second": None if np.isnan(grown) else round(grown, 1),
        }
        made.append(cast("EtsTable", table))
    return made
