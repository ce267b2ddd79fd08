# SPDX-License-Identifier: Apache-2.0
"""
Lost connections of one VM by peer and reason, under a bounded number of names.

Pure. Peers choose their names and the VM its reasons: reasons are few classes, and the peers that
are lost first have series, all later ones are ``other``. No series ever goes or falls. Those of
``other`` are there from 0, so that a loss is seen to be new.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.metrics.page import label_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.metrics.page import Page

OTHER = "other"
#: Pairs of peer and reason of one VM that have a series of their own.
MOST = 10
#: What the VM calls reasons that are classes of their own, and what ``net_kernel:monitor_nodes/2``
#: calls them (OTP-25.2.3 dist.c:1060).
_REASONS = {
    "net_tick_timeout": "net_tick_timeout",
    "normal": "connection_closed",
    "connection_closed": "connection_closed",
    "disconnect": "disconnect",
}
REASONS = (*dict.fromkeys(_REASONS.values()), OTHER)


class DownTotal(NamedTuple):
    """Lost connections to one peer for one class of reasons since the VM is observed."""

    peer: str
    reason: str
    total: int


@dataclass(slots=True)
class DownSums:
    """Totals by peer and reason; *most* pairs have a name."""

    most: int = MOST
    _named: set[tuple[str, str]] = field(default_factory=set)

    def update(self, rows: Iterable[tuple[str | None, str | None, int]]) -> tuple[DownTotal, ...]:
        """
        Take totals by peer and reason, None for an unknown one; totals that have a series.

        Rows may share both. A total never falls, and neither does what is returned.
        """
        totals: Counter[tuple[str, str]] = Counter()
        for peer, reason, count in rows:
            name = label_value(peer) if peer else OTHER
            totals[name, _REASONS.get(reason or "", OTHER)] += count
        for pair, _ in totals.most_common():
            if len(self._named) < self.most and pair[0] != OTHER:
                self._named.add(pair)
        found = [DownTotal(*pair, totals[pair]) for pair in sorted(self._named)]
        rest: Counter[str] = Counter()
        for pair, count in totals.items():
            rest[pair[1]] += 0 if pair in self._named else count
        return (*found, *(DownTotal(OTHER, reason, rest[reason]) for reason in REASONS))


def expose_downs(page: Page, node: str, found: Iterable[DownTotal]) -> None:
    """Add the totals."""
    for one in found:
        page.add("beam_node_down_total", one.total, node=node, peer=one.peer, reason=one.reason)
