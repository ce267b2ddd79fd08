# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions in a capture: their markers, paired by process and depth of the stack.

As probes/mark.bpf.c does it: a call is open from its entry until a marker of the same process at
the same or a lesser depth. A callback has a marker wherever it ends, so one that is open there has
failed; another function may have ended in a tail call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

End = Literal["returned", "handed over", "failed", "left", "running"]
#: Open calls that are kept, of all processes; of the oldest process beyond them no end is seen.
_MOST = 1 << 18
_CALLBACK, _FUNCTION, _EXIT = (
    events.KINDS[name].id for name in ("mark_callback", "mark_function", "exit")
)
_ENTRY, _RETURN, _CAUGHT, _CATCH, _TAIL = range(5)


@dataclass(slots=True)
class MarkedCall:
    """One call; times in ns as records have them, terms and ids as numbers, 0 if unknown."""

    #: From 1 on, in the order in which calls began; ``parent`` is the call around it, 0 for none.
    number: int
    parent: int
    process: int
    function: int
    is_callback: bool
    began_ns: int
    caller: int
    #: Atoms of the first argument, and of what was returned.
    tag: int
    depth: int
    #: When its end was seen; 0 while it is running.
    ended_ns: int = 0
    end: End = "running"
    returned: int = 0


class MarkedCalls:
    """Finds the calls of one capture, in the order in which they end."""

    def __init__(self) -> None:
        #: Open calls by process, the deepest last.
        self._open: dict[int, list[MarkedCall]] = {}
        self._held = self._begun = 0
        #: Calls whose end is not followed: there was no room.
        self.dropped = 0

    def records(self, batch: NDArray[np.void]) -> Iterator[MarkedCall]:
        """Take a batch of ``events.RECORD``; the calls that end in it."""
        rows = batch[np.isin(batch["kind"], (_CALLBACK, _FUNCTION, _EXIT))]
        columns = (
            *(rows[name].tolist() for name in ("kind", "class", "time_ns", "process")),
            rows["body"].tolist(),
        )
        for kind, marker, time, process, (function, depth, caller, tag) in zip(
            *columns, strict=True
        ):
            if kind == _EXIT:
                yield from self._unwind(process, -1, time)
            elif marker == _ENTRY:
                yield from self._unwind(process, depth - 1, time)
                parents = self._open.get(process)
                parent = parents[-1].number if parents else 0
                self._begun += 1
                is_callback = kind == _CALLBACK
                self._begin(
                    MarkedCall(
                        *(self._begun, parent, process, function, is_callback),
                        *(time, caller, tag, depth),
                    )
                )
            else:
                yield from self._unwind(process, depth, time)
                if marker in (_RETURN, _TAIL):
                    yield from self._leave(process, function, depth, (marker, time, tag))

    def running(self) -> Iterator[MarkedCall]:
        """The calls that have not ended; after all batches."""
        for calls in self._open.values():
            yield from calls

    def _begin(self, call: MarkedCall) -> None:
        self._open.setdefault(call.process, []).append(call)
        self._held += 1
        while self._held > _MOST:
            calls = self._open.pop(next(iter(self._open)))
            self._held -= len(calls)
            self.dropped += len(calls)

    def _unwind(self, process: int, depth: int, time: int) -> Iterator[MarkedCall]:
        """The open calls that are deeper than *depth*: they have ended without a marker."""
        calls = self._open.get(process, [])
        while calls and calls[-1].depth > depth:
            call = self._pop(calls)
            yield _ended(call, "failed" if call.is_callback else "left", time)

    def _leave(
        self, process: int, function: int, depth: int, marker: tuple[int, int, int]
    ) -> Iterator[MarkedCall]:
        """End the call at *depth*, if one is open."""
        kind, time, tag = marker
        calls = self._open.get(process, [])
        if not calls or calls[-1].depth != depth:
            return
        call = self._pop(calls)
        # What returns may not be what was called: a function ends with what it calls last.
        if call.function != function:
            yield _ended(call, "failed" if call.is_callback else "left", time)
        elif kind == _TAIL:
            yield _ended(call, "handed over", time)
        else:
            call.returned = tag
            yield _ended(call, "returned", time)

    def _pop(self, calls: list[MarkedCall]) -> MarkedCall:
        call = calls.pop()
        self._held -= 1
        if not calls:
            self._open.pop(call.process, None)
        return call


def _ended(call: MarkedCall, how: End, time: int) -> MarkedCall:
    call.end, call.ended_ns = how, time
    return call
