# SPDX-License-Identifier: Apache-2.0
"""
Durations of calls whose calls and returns are known by process and function alone.

A call that ends by an exception or by a tail call never returns under its own name, and some
instructions that return have no probe. A later return may then belong to an older call. So
durations are given only when every open call has returned: then each return was that of the
youngest open call. If one return never comes, no call of that function in that process is measured
any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Open:
    since_ns: list[int] = field(default_factory=list)
    ended: list[tuple[int, int]] = field(default_factory=list)


class Pairs:
    """Calls that have not returned, by process and number of the function."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], _Open] = {}

    def called(self, process: int, function: int, time_ns: int) -> None:
        """Note a call."""
        self._open.setdefault((process, function), _Open()).since_ns.append(time_ns)

    def returned(self, process: int, function: int, time_ns: int) -> list[tuple[int, int]]:
        """
        Note a return; the begin and end, ns, of each call that is certain now.

        Usually that is this one call. Of a recursion it is all calls when the outermost returns,
        and none before. A return whose call was not seen gives none.
        """
        calls = self._open.get((process, function))
        if calls is None:
            return []
        calls.ended.append((calls.since_ns.pop(), time_ns))
        if calls.since_ns:
            return []
        del self._open[process, function]
        return calls.ended
