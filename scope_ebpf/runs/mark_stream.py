# SPDX-License-Identifier: Apache-2.0
"""Each call of a marked function when it ends: its begin and end, as the ring has them, joined."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.beam.code.captured_words import ShapeFormatter
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.errors import ScopeError
from scope_ebpf.results.marks import MarkedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.marks import End
    from scope_ebpf.runs.mark_places import Places

#: Calls that wait for their end, a kilobyte each; of the oldest beyond them no end is reported.
_MOST_OPEN = 16384
#: Addresses that are remembered.
_MOST_PLACES = 65536
#: Arguments whose terms the kernel side keeps.
_ARGUMENTS = 8
_IS_CALLBACK = 1 << 31
_ENDS: dict[int, End] = {
    events.LINE_RETURNED: "returned",
    events.LINE_HANDED: "handed over",
    events.LINE_FAILED: "failed",
    events.LINE_LEFT: "left",
}


class _Begin(NamedTuple):
    """A call that has begun: its line of the ring, and what MarkedCall says of its places."""

    line: np.void
    caller: str | None
    location: str | None


class MarkStream:
    """
    Joins begins and ends of calls of *target*, and gives each call to *show*.

    *functions* are those that are watched, by id; it may grow.
    """

    def __init__(
        self,
        target: Target,
        atoms: Atoms,
        functions: Mapping[int, Function],
        places: Places,
        show: Callable[[MarkedCall], None],
    ) -> None:
        self._functions, self._places, self._show = functions, places, show
        self._pids = PidCodec.of(target)
        self._shapes = ShapeFormatter(target, atoms)
        #: Begins by process, time and slot, oldest first.
        self._open: dict[tuple[int, int, int], _Begin] = {}
        #: What is in the code at an address, in this generation of code, and what was before.
        self._mfas: dict[int, Mfa | None] = {}
        self._before: dict[int, Mfa | None] = {}
        self._generation = places.generation
        #: When this generation was first seen.
        self._changed_ns = 0

    def take(self, lines: Iterable[np.void], seconds: float) -> None:
        """Take begins and ends in, oldest first, for *seconds*; the rest stays in *lines*."""
        self._follow_code()
        until = time.monotonic() + seconds
        for line in lines:
            self._take(line)
            if time.monotonic() >= until:
                return

    def _take(self, line: np.void) -> None:
        key = (int(line["process"]), int(line["began_ns"]), int(line["slot"]))
        if line["line"] == events.LINE_ENTERED:
            self._open[key] = self._begin(line)
            if len(self._open) > _MOST_OPEN:
                self._tell(self._open.pop(next(iter(self._open))), None, "untold")
        elif line["line"] == events.LINE_UNFOLLOWED:
            self._tell(self._begin(line), None, "untold")
        elif (begin := self._open.pop(key, None)) is not None:
            self._tell(begin, line, _ENDS[int(line["line"])])

    def end(self, still: Mapping[tuple[int, int], End], seconds: float) -> int:
        """
        Report the calls whose end was not reported, for *seconds*; returns how many were left.

        *still* has what is known of some of them, by process and when they began.
        """
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            key = next(iter(self._open))
            process, began_ns, _ = key
            self._tell(self._open.pop(key), None, still.get((process, began_ns), "untold"))
        left = len(self._open)
        self._open.clear()
        return left

    def _begin(self, line: np.void) -> _Begin:
        """Name the places of a call when it begins: later there may be other code."""
        return _Begin(line, self._caller(line), self._line(line))

    def _tell(self, begun: _Begin, end: np.void | None, how: End) -> None:
        begin = begun.line
        function = self._functions.get(int(begin["id"]))
        if function is None:
            return
        seen = how in ("returned", "handed over") and end is not None
        self._show(
            MarkedCall(
                int(begin["time_ns"]),
                self._pids.text(int(begin["process"])),
                str(function),
                "callback" if begin["slot"] & _IS_CALLBACK else "function",
                self._terms(begin),
                how,
                int(end["time_ns"]) - int(begin["time_ns"]) if seen and end is not None else None,
                self._terms(end)[0] if how == "returned" and end is not None else None,
                begun.caller,
                begun.location,
            )
        )

    def _terms(self, line: np.void) -> tuple[str, ...]:
        arity = int(line["arity"])
        captures = line["captures"].reshape(-1, events.CAPTURE_WORDS)
        try:
            shapes = self._shapes.shapes(line["x"].tolist()[:arity], captures)
        except ScopeError:
            shapes = ["?"] * min(arity, _ARGUMENTS)
        return (*shapes, *("...",) * (arity > _ARGUMENTS))

    def _caller(self, line: np.void) -> str | None:
        """The function that a call returns to; None if it may be one that is gone."""
        place = self._place(address := int(line["caller"]))
        if int(line["time_ns"]) < self._changed_ns and self._before.get(address, place) != place:
            return None
        return str(place) if place else None

    def _line(self, line: np.void) -> str | None:
        """File and line of the called function, if that is what is at the place of its marker."""
        place, function = self._place(int(line["code"])), self._functions.get(int(line["id"]))
        return place.location or None if place and str(place) == str(function) else None

    def _place(self, address: int) -> Mfa | None:
        if address not in self._mfas:
            if len(self._mfas) >= _MOST_PLACES:
                self._mfas.clear()
            try:
                self._places.refresh()
                self._follow_code()
                self._mfas[address] = self._places.location(address)
            except ScopeError:
                return None  # the VM has ended, or its tables were being written
        return self._mfas[address]

    def _follow_code(self) -> None:
        """Forget what was at addresses before code was loaded or purged."""
        if self._generation != self._places.generation:
            self._generation = self._places.generation
            self._before |= self._mfas
            if len(self._before) > _MOST_PLACES:
                self._before = self._mfas
            self._mfas = {}
            self._changed_ns = time.monotonic_ns()
