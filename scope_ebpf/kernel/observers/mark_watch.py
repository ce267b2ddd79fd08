# SPDX-License-Identifier: Apache-2.0
"""Calls of marked functions: the ``mark`` object on the BIFs that are markers."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
    wait_gone,
)
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity

PROGRAM = "mark"
#: Calls that one process may have open, of ``mark.bpf.c``.
_OPEN_CALLS = 16
_SETTINGS = np.dtype([("tgid", "<u4"), ("hend", "<u4")])
STAT = np.dtype(
    [
        *((name, "<u8") for name in ("calls", "returns", "failures", "ns")),
        ("slots", "<u8", events.HISTOGRAM_SLOTS),
    ]
)
_CALL = np.dtype([("depth", "<u8"), ("began", "<u8"), ("number", "<u8")])
_OPEN = np.dtype([("count", "<u8"), ("calls", _CALL, _OPEN_CALLS)])
#: Keys of ``mark_counts``.
_COUNTS = ("no_id", "unpaired", "no_room")


class MarkWatch(Closing):
    """
    Counts the calls of the functions whose *ids* are given, while it is open.

    The number of a function is its place in *ids*; *hend* is the offset of that field in a
    Process. Raises HostError where the kernel refuses.
    """

    def __init__(
        self, identity: Identity, hooks: Sequence[Attachment], ids: Sequence[int], hend: int
    ) -> None:
        self._identity, self._hooks, self._ids = identity, list(hooks), list(ids)
        self._settings = np.array((identity.pid, hend), _SETTINGS)
        self._resources = ExitStack()
        self._object = self._resources.enter_context(
            closing(BpfObject("mark", object_bytes("mark")))
        )

    def _open(self) -> None:
        self._object.set_constants(self._settings.tobytes())
        for name in ("ids", "mark_stats"):
            self._object.maps[name].set_entries(max(1, len(self._ids)))
        multi = has_multi()
        self._object.load([PROGRAM], TRACE_UPROBE_MULTI if multi else None)
        ids = self._object.map("ids", U64, U32)
        for number, key in enumerate(self._ids):
            ids[key] = number
        self._gate = self._object.map("gate", U32, U64)
        attacher = self._resources.enter_context(Attacher())
        self._uprobes = Uprobes(self._identity, attacher, multi=multi)
        self._resources.callback(self._detach)
        ready = [(self._object.program_fd(PROGRAM), self._hooks)]
        failed = [error for error in self._uprobes.attach(ready) if error]
        if failed:
            raise NothingToAttachError(f"marks cannot be seen: {failed[0]}")

    def start(self) -> None:
        """Count from now on."""
        self._gate[0] = 1

    def stop(self) -> None:
        """Remove the breakpoints; the counts can still be read."""
        self._gate[0] = 0
        self._detach()

    def _detach(self) -> None:
        wait_gone(self._uprobes.detach())

    def stats(self) -> NDArray[np.void]:
        """One STAT of each function, shape ``(functions,)``; nanoseconds in ``ns``."""
        values = self._object.map("mark_stats", U32, STAT).values()
        total = np.zeros(len(values), STAT)
        for name in STAT.names or ():
            total[name] = values[name].sum(axis=1)
        return total

    def open_calls(self) -> list[tuple[int, int]]:
        """Calls that are still open: address of the process, number of the function."""
        rows = self._object.map("open", U64, _OPEN).items()
        return [
            (int(process), int(call["number"]))
            for process, value in rows
            for call in value["calls"][: int(value["count"])]
        ]

    def counts(self) -> dict[str, int]:
        """Hits without a known id, returns without a call, and calls that found no room."""
        values = self._object.map("mark_counts", U32, U64).values().sum(axis=1)
        return dict(zip(_COUNTS, map(int, values), strict=True))

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self._resources.close()
