# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions, counted and timed: the programs of ``mark.bpf.c`` and their maps.

Everything lives as long as this process's file descriptors.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.errors import HostError
from scope_ebpf.kernel import host
from scope_ebpf.kernel.attach.uprobes import (
    TRACE_UPROBE_MULTI,
    Attacher,
    Uprobes,
    has_multi,
)
from scope_ebpf.kernel.bpf.long_ring import LongRing
from scope_ebpf.kernel.bpf.maps import U32, U64
from scope_ebpf.kernel.bpf.objects import BpfObject, object_bytes
from scope_ebpf.kernel.observers.loaded_plan import by_program
from scope_ebpf.kernel.observers.windowed import WindowedWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.kernel.attach.uprobes import Identity
    from scope_ebpf.kernel.bpf.maps import Map

#: The program of each class of markers.
PROGRAMS = {"callback": "mark_callback", "function": "mark_function"}
#: Ids that can be added to those that a watch began with.
_SPARE = 8192
#: Processes whose calls can be followed, at least and at most (352 bytes each).
_FEWEST, _MOST = 1 << 13, 1 << 17
#: Room for 16,000 lines of a stream, a kilobyte each, until they are read.
_RING_BYTES = 16 << 20
#: The highest bit of the slot of an open call: it is a callback's.
_IS_CALLBACK = 1 << 31


class Called(NamedTuple):
    """The slot that a function has in the statistics, and whether it is a callback."""

    slot: int
    is_callback: bool


class OpenCall(NamedTuple):
    """A call that has not ended: pid of its process (a term), slot, and when it began, ns."""

    process: int
    slot: int
    began_ns: int
    is_callback: bool


class _Maps(NamedTuple):
    """The maps of ``mark.bpf.c``, as there."""

    window: Map
    ids: Map
    called: Map
    stats: Map
    open_calls: Map
    tags: Map
    callers: Map
    counts: Map


class MarkWatch(WindowedWatch):
    """
    Watches the functions whose ids are the keys of *ids*, in the VM of *identity*.

    A value of *ids* says whether the function's first argument is a message, and its arity.
    *settings* is one ``events.MARK_SETTINGS``, *processes* about how many the VM has,
    *attacher* is one that others use too. A context
    manager; nothing counts before :meth:`attach` and :meth:`open_window`. Raises HostError where
    the kernel refuses, and NothingToAttachError if a hook cannot be attached.
    """

    SEEN = "marks"

    def __init__(
        self,
        identity: Identity,
        settings: NDArray[np.void],
        hooks: Sequence[Attachment],
        ids: Mapping[int, tuple[bool, int]],
        processes: int = 0,
        *,
        attacher: Attacher | None = None,
    ) -> None:
        host.require_host_pids(
            "this runs in a pid namespace, where the kernel's numbers of processes are others"
        )
        for hook in hooks:
            if hook.name not in allowlist.MARKERS:
                raise HostError(f"{hook.name} is not on the list of what we may attach to")
        self._identity, self._settings, self._hooks = identity, settings, list(hooks)
        self._known = dict(ids)
        self._streams = bool(settings["stream"])
        self._processes = min(max(2 * processes, _FEWEST), _MOST)
        self._attacher = attacher
        self._resources = ExitStack()
        self._leaving = None

    def _open(self) -> None:
        made = BpfObject("mark", object_bytes("mark"))
        self._object = self._resources.enter_context(closing(made))
        made.set_constants(self._settings.tobytes())
        made.maps["mark_ids"].set_entries(len(self._known) + _SPARE)
        made.maps["mark_processes"].set_entries(self._processes)
        if self._streams:
            made.maps["mark_ring"].set_entries(_RING_BYTES)
        multi = has_multi()
        made.load(by_program(self._hooks), TRACE_UPROBE_MULTI if multi else None)
        self._maps = _Maps(
            window=made.map("mark_window", U32, events.SERVER_WINDOW),
            ids=made.map("mark_ids", U64, events.MARK_FUNCTION),
            called=made.map("mark_functions", U64, events.MARK_FUNCTION),
            stats=made.map("mark_stats", U32, events.MARK_STATS),
            open_calls=made.map("mark_processes", U64, events.MARK_PROCESS),
            tags=made.map("mark_tags", events.MARK_TAG, U64),
            callers=made.map("mark_callers", events.MARK_CALLER, U64),
            counts=made.map("mark_counts", U32, U64),
        )
        self._window = self._maps.window
        if self._streams:
            ring = LongRing(made.maps["mark_ring"].fd, _RING_BYTES)
            self._ring = self._resources.enter_context(closing(ring))
        known, self._known = self._known, {}
        self.add(known)
        self._attacher = self._attacher or self._resources.enter_context(Attacher())
        self._uprobes = Uprobes(self._identity, self._attacher, multi=multi)
        self._resources.callback(self.detach)

    def add(self, ids: Mapping[int, tuple[bool, int]]) -> int:
        """Watch more functions; returns how many found no room."""
        new = {key: about for key, about in ids.items() if key not in self._known}
        left_out = 0
        for key, (tagged, arity) in new.items():
            try:
                self._maps.ids[key] = (0, tagged, 0, arity)
            except HostError:
                left_out += 1
            else:
                self._known[key] = tagged, arity
        return left_out

    def forget_open(self) -> None:
        """Forget which calls were open when the window ended: their end will not be seen."""
        self._object.maps["mark_processes"].clear()

    def stats(self) -> NDArray[np.void]:
        """What was counted in each slot, shape ``(MARK_SLOTS,)`` of MARK_STATS."""
        return self._maps.stats.values()

    def called(self) -> dict[int, Called]:
        """The functions that were called, by id; all others share slot 0."""
        return {
            int(key): Called(int(value["slot"]), bool(value["callback"]))
            for key, value in self._maps.called.items()
        }

    def tags(self) -> list[tuple[int, int, int, int]]:
        """Slot, way, atom and count of what callbacks were called with, and returned."""
        return [(*key.tolist(), int(count)) for key, count in self._maps.tags.items()]

    def callers(self) -> list[tuple[int, int, int]]:
        """Slot, address that calls return to, and their number."""
        return [
            (int(key["slot"]), int(key["address"]), int(count))
            for key, count in self._maps.callers.items()
        ]

    def lines(self) -> Iterator[np.void]:
        """
        Take begins and ends of calls, oldest first: MARK_CALL or MARK_END.

        What is not taken stays in the ring.
        """
        for record in self._ring.records():
            whole = len(record) == events.MARK_CALL.itemsize
            yield np.frombuffer(record, events.MARK_CALL if whole else events.MARK_END)[0]

    def drop_lines(self) -> int:
        """Drop what is in the ring; returns how many begins and ends of calls that were."""
        return sum(1 for _ in self._ring.records())

    def open_calls(self) -> list[OpenCall]:
        """The calls that are open."""
        return [
            OpenCall(
                int(value["id"]),
                int(value["slot"][at]) & ~_IS_CALLBACK,
                int(value["began_ns"][at]),
                bool(int(value["slot"][at]) & _IS_CALLBACK),
            )
            for _, value in self._maps.open_calls.items()
            for at in range(min(int(value["count"]), events.MARK_OPEN_CALLS))
        ]

    def counts(self) -> dict[str, int]:
        """Hits of each class of markers, and what could not be counted, by MARK_COUNTS."""
        values = self._maps.counts.values().sum(axis=1).tolist()
        return dict(zip(events.MARK_COUNTS, map(int, values), strict=True))
