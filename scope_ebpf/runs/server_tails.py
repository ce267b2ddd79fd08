# SPDX-License-Identifier: Apache-2.0
"""
How long calls take that outlast the windows of hooks, from looks at calls that are open.

A call has a reference, so each look says which of the calls of the look before are still open. One
that is longer than the time between looks is seen by at least one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.results.server_events import Times, bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from scope_ebpf.results.server_events import Messages, ServerEvents

#: Groups of servers whose calls are timed, and looks that may miss a call that is open.
_MOST, _MISSED = 256, 2
#: Mean times between looks from which on a duration is known well enough.
_GAPS = 4.0
#: A call: the pid term of its caller, and its reference.
_Call = tuple[int, tuple[int, int]]


@dataclass(slots=True)
class _Open:
    """A call that looks see."""

    group: str
    #: When it began, in the middle between two looks; None for one from before the first look.
    began: float | None
    #: When a look saw it last, and the number of that look.
    seen: float
    look: int
    #: When the look behind that one was; there it was not seen.
    ended: float | None = None


class Tails:
    """Adds up how long calls are seen."""

    def __init__(self) -> None:
        self._open: dict[_Call, _Open] = {}
        self._times: dict[str, NDArray[np.int64]] = {}
        self._first = self._last = 0.0
        self._looks = 0

    def look(
        self,
        now: float,
        waits: Mapping[int, tuple[int, tuple[int, int]]],
        group: Callable[[int], str],
    ) -> None:
        """
        Take the calls that are open *now*, seconds: by caller the server and the reference.

        *group* gives the name of a server's group.
        """
        self._looks += 1
        if self._looks == 1:
            self._first = self._last = now
        for caller, (server, reference) in waits.items():
            known = self._open.get((caller, reference))
            if known is None:
                began = None if self._looks == 1 else (self._last + now) / 2
                self._open[caller, reference] = _Open(group(server), began, now, self._looks)
            else:
                known.seen, known.look, known.ended = now, self._looks, None
        for call, one in list(self._open.items()):
            if one.look == self._looks - 1 and one.ended is None:
                one.ended = now
            if one.look <= self._looks - _MISSED:
                self._end(self._open.pop(call))
        self._last = now

    def _end(self, one: _Open) -> None:
        if one.began is None or (one.group not in self._times and len(self._times) >= _MOST):
            return
        until = (one.seen + (one.ended or one.seen)) / 2
        of = self._times.setdefault(one.group, np.zeros(events.SERVER_BUCKETS, np.int64))
        of[bucket_of(until - one.began)] += 1

    def of(self, group: str, calls: float, error: float) -> Times | None:
        """
        The durations of *calls* calls of one group, whose number has an *error*, as a part of it.

        Of those that no look has seen it is known that they are short. None where nothing is known.
        """
        if self._looks < 2:
            return None
        ended = self._times.get(group, np.zeros(events.SERVER_BUCKETS, np.int64)).copy()
        cut = np.zeros(events.SERVER_BUCKETS, np.int64)
        for one in self._open.values():
            if one.group == group and one.began is not None:
                cut[bucket_of(self._last - one.began)] += 1
        if not ended.any() and not cut.any():
            return None
        ended[0] += max(0, round(calls) - int(ended.sum() + cut.sum()))
        gap = (self._last - self._first) / (self._looks - 1)
        return Times(ended, 0.0, cut, self._last - self._first, _GAPS * gap, doubt=error)

    def add_to(self, seen: ServerEvents) -> ServerEvents:
        """The same, with what looks know of the calls of each module."""
        return replace(
            seen, modules={name: self._with(name, of) for name, of in seen.modules.items()}
        )

    def _with(self, name: str, messages: Messages) -> Messages:
        if messages.call.reach is None:
            return messages
        # Callers on other nodes are never seen to wait, so their calls are not known to be short.
        tail = self.of(name, messages.own_calls, messages.errors[0])
        return replace(messages, call=replace(messages.call, tail=tail))
