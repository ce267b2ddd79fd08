# SPDX-License-Identifier: Apache-2.0
"""Processes: on the tracks of the threads that ran them, and on tracks of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scope_ebpf import events
from scope_ebpf.sinks.perfetto.rows import UNKNOWN
from scope_ebpf.sinks.perfetto.tracks import MOST_THREADS
from scope_ebpf.sinks.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.sinks.perfetto.rows import Row
    from scope_ebpf.sinks.perfetto.tracks import Tracks

_KINDS = tuple(events.KINDS.values())
_IN = events.KINDS["schedule"].classes.index("in")
_NEXT = {0: "waiting", 1: "runnable"}
#: Words that are shown beside an event.
_ATOMS = {
    "spawn": (("module", 1), ("function", 2)),
    "exit": (("reason", 0), ("tag", 1)),
    "code_load": (("module", 0),),
    "port_open": (("port", 0),),
    "port_close": (("port", 0), ("reason", 1)),
}


class _State:
    """The state of a process with a track of its own, and since when."""

    __slots__ = ("facts", "name", "since", "track")

    def __init__(self, track: int) -> None:
        self.track = track
        self.name = ""
        self.since = 0
        self.facts: dict[str, Any] | None = None


class Processes:
    """Draws *processes* on *tracks*; the capture begins at *first*, ns since boot."""

    def __init__(self, tracks: Tracks, processes: Iterable[int], first: int) -> None:
        self._tracks = tracks
        self._file = tracks.file
        self._terms = tracks.terms
        self._first = first
        self._states = {
            pid: _State(track) for pid in processes if (track := tracks.process(pid)) is not None
        }
        self._on: dict[int, tuple[int, int]] = {}

    def schedule(self, row: Row) -> None:
        """A process went in or out of a scheduler."""
        state = self._states.get(row.process)
        if row.cls == _IN:
            if row.tid in self._on or len(self._on) < MOST_THREADS:
                self._on[row.tid] = (row.time, row.process)
            if state:
                self._becomes(state, row.time, "running", {"on": self._tracks.thread_name(row.tid)})
            return
        begin, process = self._on.pop(row.tid, (0, row.process))
        if process != row.process:
            begin = 0
        duration, reductions, runnable = row.words[:3]
        who, pid = self._tracks.name(row.process)
        facts: dict[str, Any] = {"pid": pid}
        if reductions != UNKNOWN:
            facts["reductions"] = reductions
        if not begin:  # it was in before the capture began, or its beginning was lost
            begin = row.time - duration if duration != UNKNOWN else self._since(row)
        self._file.slice(self._tracks.thread(row.tid), begin, row.time, who, facts=facts)
        if state:
            if state.name != "running":
                state.name, state.since, state.facts = "running", begin, None
            if state.facts and reductions != UNKNOWN:
                state.facts["reductions"] = reductions
            self._becomes(state, row.time, _NEXT.get(runnable, "out"))

    def _since(self, row: Row) -> int:
        return min(row.time, self._first)

    def _becomes(
        self, state: _State, time: int, name: str, facts: dict[str, Any] | None = None
    ) -> None:
        """End the state of a process, and begin state *name*; none with ''."""
        if state.name and time > state.since:
            self._file.slice(state.track, state.since, time, state.name, facts=state.facts)
        state.name, state.since, state.facts = name, time, facts

    def took_time(self, row: Row) -> None:
        """A collection or a long call, on its thread and within its process."""
        kind = _KINDS[row.kind]
        name = f"{kind.name} {kind.classes[row.cls % len(kind.classes)]}"
        duration = row.words[0]
        begin = row.time if duration == UNKNOWN else row.time - duration
        facts: dict[str, Any] = {"pid": self._tracks.name(row.process)[1]} if row.process else {}
        if kind.name == "gc" and row.words[1] != UNKNOWN:
            facts["reclaimed_bytes"] = row.words[1] * 8
        if kind.name == "long_call":
            function, symbol = map(self._terms.function, row.words[1:3])
            facts |= {"function": plain(function)} if function else {}
            facts |= {"symbol": plain(symbol)} if symbol else {}
        self._file.slice(self._tracks.thread(row.tid), begin, row.time, name, facts=facts)
        state = self._states.get(row.process)
        if state and state.name == "running" and begin >= state.since:
            self._file.slice(state.track, begin, row.time, name, facts=facts)

    def spawn(self, row: Row) -> None:
        """A process began."""
        state = self._states.get(row.process)
        if state and not state.name:
            self._becomes(state, row.time, "runnable")
        self.happened(row)

    def exit(self, row: Row) -> None:
        """A process ended."""
        self.happened(row)
        state = self._states.get(row.process)
        if state and state.name != "running":
            self._becomes(state, row.time, "")

    def happened(self, row: Row) -> None:
        """Anything else, as an instant."""
        kind = _KINDS[row.kind]
        name = kind.name
        if len(kind.classes) > 1:
            name += f" {kind.classes[row.cls % len(kind.classes)]}"
        facts = {
            field: plain(text)
            for field, index in _ATOMS.get(kind.name, ())
            if (text := self._terms.texts([row.words[index]], text_pids=False)[0]) is not None
        }
        self._file.instant(self._tracks.track_of(row), row.time, name, facts=facts or None)

    def woken(self, process: int, time: int) -> None:
        """A message came: a process that waited for one may run."""
        state = self._states.get(process)
        if state and state.name == "waiting":
            self._becomes(state, time, "runnable")

    def finish(self) -> None:
        """Draw what had not ended when the capture did."""
        for tid, (begin, process) in self._on.items():
            who, pid = self._tracks.name(process)
            self._file.slice(self._tracks.thread(tid), begin, None, who, facts={"pid": pid})
        for state in self._states.values():
            if state.name:
                self._file.slice(state.track, state.since, None, state.name, facts=state.facts)
