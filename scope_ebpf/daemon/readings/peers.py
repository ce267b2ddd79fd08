# SPDX-License-Identifier: Apache-2.0
"""
The links of one VM by peer, a bounded number of them by name and the rest together.

A node may have hundreds of peers, which choose their names. Those whose link is full or has a long
queue have a name here, then those that had one before, then those with most traffic.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.metrics.page import label_value
from scope_ebpf.metrics.reading import PeerReading

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.beam.links.entries import Link

#: Peers that have a name, and what the rest is called.
MOST, OTHER = 5, "other"
#: Names that become labels of one VM within so many seconds: a peer chooses its own.
_NEW, _PERIOD = 20, 3600.0
#: Bytes of a queue that make a link worth a name.
_LONG = 1 << 16
#: One connection: where its entry lies, and its number.
_Key = tuple[int, int]


@dataclass(slots=True)
class _Sum:
    """What the links of one name do now."""

    queued: int = 0
    full: int = 0
    suspended: int = 0
    longest: float = 0.0
    received: int = 0
    sent: int = 0
    counted: bool = False


class Peers:
    """Adds the links of one VM up, reading after reading."""

    def __init__(self) -> None:
        self._octets: dict[_Key, tuple[int, int]] = {}
        self._waiting: dict[tuple[_Key, int], float] = {}
        #: Bytes from and to each name since it is one.
        self._totals: dict[str, tuple[int, int]] = {}
        #: When each name became a label.
        self._said: dict[str, float] = {}

    def update(self, links: Iterable[Link], now: float) -> tuple[PeerReading, ...]:
        """Take the *links* of a reading at *now*, in monotonic seconds."""
        sums: dict[str, _Sum] = defaultdict(_Sum)
        octets: dict[_Key, tuple[int, int]] = {}
        waiting: dict[tuple[_Key, int], float] = {}
        for link in links:
            key, one = (link.entry, link.connection), sums[label_value(link.peer)]
            one.queued += link.queued + (link.port.queued if link.port else 0)
            one.full += link.busy
            one.suspended += len(link.suspended or ())
            for pid in link.suspended or ():
                waiting[key, pid] = self._waiting.get((key, pid), now)
                one.longest = max(one.longest, now - waiting[key, pid])
            if link.port and link.port.traffic:
                octets[key] = link.port.traffic.bytes_in, link.port.traffic.bytes_out
                self._add_traffic(one, key, octets[key])
            elif key in self._octets:  # it could not be read this time
                octets[key] = self._octets[key]
        self._octets, self._waiting = octets, waiting
        return self._named(sums, now)

    def _add_traffic(self, one: _Sum, key: _Key, now: tuple[int, int]) -> None:
        """Add what passed since the last reading, all of it if the connection is new."""
        before = self._octets.get(key, (0, 0))
        if now[0] < before[0] or now[1] < before[1]:
            before = now  # a torn reading: what it is of shows in the next
        one.received += now[0] - before[0]
        one.sent += now[1] - before[1]
        one.counted = True

    def _may_be_said(self, name: str, now: float) -> bool:
        """Whether *name* is a label already, or may become one."""
        self._said = {said: at for said, at in self._said.items() if now - at < _PERIOD}
        if name not in self._said and len(self._said) < _NEW:
            self._said[name] = now
        return name in self._said

    def _named(self, sums: dict[str, _Sum], now: float) -> tuple[PeerReading, ...]:
        ranked = sorted(sums, key=lambda name: self._worth(name, sums[name]))[:MOST]
        names = [name for name in ranked if self._may_be_said(name, now)]
        grouped: dict[str, _Sum] = {name: sums[name] for name in names}
        for name in sums.keys() - grouped.keys():
            _merge(grouped.setdefault(OTHER, _Sum()), sums[name])
        if OTHER in self._totals:
            grouped.setdefault(OTHER, _Sum())
        totals = {}
        for name, one in grouped.items():
            received, sent = self._totals.get(name, (0, 0))
            if one.counted or name in self._totals:
                totals[name] = received + one.received, sent + one.sent
        self._totals = totals
        return tuple(_reading(name, one, totals.get(name)) for name, one in grouped.items())

    def _worth(self, name: str, one: _Sum) -> tuple[object, ...]:
        """Sort the peers that are worth a name to the front."""
        known = name in self._totals
        return (not one.full, one.queued < _LONG, not known, -(one.received + one.sent), name)


def _merge(into: _Sum, one: _Sum) -> None:
    into.queued += one.queued
    into.full += one.full
    into.suspended += one.suspended
    into.longest = max(into.longest, one.longest)
    into.received += one.received
    into.sent += one.sent
    into.counted |= one.counted


def _reading(name: str, one: _Sum, octets: tuple[int, int] | None) -> PeerReading:
    return PeerReading(name, one.queued, one.full, one.suspended, one.longest, octets)
