# SPDX-License-Identifier: Apache-2.0
"""Each call of a marked function when it ends: its begin and end, as the ring has them, joined."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf import events
from scope_ebpf.beam.code.captured_words import ShapeFormatter
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.results.marks import MarkedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.marks import End
    from scope_ebpf.runs.mark_places import Places

#: Calls that wait for their end, a kilobyte each; of the oldest beyond them no end is told.
_MOST_OPEN = 16384
#: Lines of addresses that are remembered.
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
        self._open: dict[tuple[int, int, int], np.void] = {}
        #: File and line of functions, and functions that calls return to, by address.
        self._lines: dict[int, str | None] = {}
        self._callers: dict[int, str | None] = {}

    def take(self, lines: Iterable[np.void]) -> None:
        """Take begins and ends in, oldest first."""
        for line in lines:
            self._take(line)

    def _take(self, line: np.void) -> None:
        key = (int(line["process"]), int(line["began_ns"]), int(line["slot"]))
        if line["line"] == events.LINE_ENTERED:
            self._open[key] = line
            if len(self._open) > _MOST_OPEN:
                self._tell(self._open.pop(next(iter(self._open))), None, "untold")
        elif line["line"] == events.LINE_UNFOLLOWED:
            self._tell(line, None, "untold")
        elif (begin := self._open.pop(key, None)) is not None:
            self._tell(begin, line, _ENDS[int(line["line"])])

    def end(self, still: Mapping[tuple[int, int], End]) -> None:
        """
        Tell the calls whose end was not told.

        *still* has what is known of some of them, by process and when they began.
        """
        for (process, began_ns, _), begin in self._open.items():
            self._tell(begin, None, still.get((process, began_ns), "untold"))
        self._open.clear()

    def _tell(self, begin: np.void, end: np.void | None, how: End) -> None:
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
                self._caller(int(begin["caller"])),
                self._line(int(begin["code"])),
            )
        )

    def _terms(self, line: np.void) -> tuple[str, ...]:
        arity = int(line["arity"])
        captures = line["captures"].reshape(-1, events.CAPTURE_WORDS)
        try:
            shapes = self._shapes.shapes(line["x"].tolist()[:arity], captures)
        except ReadRefusedError:
            shapes = ["?"] * min(arity, _ARGUMENTS)
        return (*shapes, *("...",) * (arity > _ARGUMENTS))

    def _caller(self, address: int) -> str | None:
        if address not in self._callers:
            self._look_up(address)
        return self._callers.get(address)

    def _line(self, address: int) -> str | None:
        if address not in self._lines:
            self._look_up(address)
        return self._lines.get(address)

    def _look_up(self, address: int) -> None:
        if len(self._lines) >= _MOST_PLACES:
            self._lines.clear()
            self._callers.clear()
        with suppress(ReadRefusedError):
            self._places.refresh()
        mfa = self._places.location(address)
        self._lines[address] = mfa.location or None if mfa else None
        self._callers[address] = str(mfa) if mfa else None
