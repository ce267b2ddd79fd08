# SPDX-License-Identifier: Apache-2.0
"""ETS tables of two looks: how much each grew, and what documents say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from scope_ebpf.beam.held.tables import is_named, protection_of, type_of
from scope_ebpf.beam.processes.table import IDENTITY
from scope_ebpf.beam.processes.view import Viewer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.held import EtsTable


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
