# SPDX-License-Identifier: Apache-2.0
"""
Calls and returns that are known by process and function alone, made into durations.

A call that ends by an exception, or by calling another function as the last thing it does, never
returns under its own name, and some instructions that return have no probe. A later return may
then be that of an older call. So pairs count once each call that was open has returned: then each
return was that of the youngest open call. Where one never comes, nothing is measured any more of
that function in that process.
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
        Note a return; when each of the calls that are certain now began and ended, ns.

        Mostly that is this one call; of a recursion all when the outermost returns, and before
        that none. The return of a call from before the beginning is none.
        """
        calls = self._open.get((process, function))
        if calls is None:
            return []
        calls.ended.append((calls.since_ns.pop(), time_ns))
        if calls.since_ns:
            return []
        del self._open[process, function]
        return calls.ended
