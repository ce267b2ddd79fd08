# SPDX-License-Identifier: Apache-2.0
"""
Crashes of one VM by module and reason, under a bounded number of names.

Pure. A VM names its modules and reasons itself, so the first pairs that crash become labels, and
all later ones are one series: no series ever goes or falls.
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
#: Pairs of one VM that have a series of their own.
MOST = 10


class CrashTotal(NamedTuple):
    """Crashes of one module for one reason since the VM is observed; both are label values."""

    module: str
    reason: str
    total: int


@dataclass(slots=True)
class CrashSums:
    """Totals by module and reason; *most* pairs have a name."""

    most: int = MOST
    _named: set[tuple[str, str]] = field(default_factory=set)

    def update(self, rows: Iterable[tuple[str | None, str | None, int]]) -> tuple[CrashTotal, ...]:
        """
        Take totals by module and reason, None for an unknown one; totals that have a series.

        Rows may share module and reason. A total never falls, and neither does what is returned.
        """
        totals: Counter[tuple[str, str]] = Counter()
        for module, reason, count in rows:
            totals[label_value(module or ""), label_value(reason or "")] += count
        for pair, _ in totals.most_common():
            if len(self._named) < self.most:
                self._named.add(pair)
        rest = totals.total() - sum(totals[pair] for pair in self._named)
        found = [CrashTotal(*pair, totals[pair]) for pair in sorted(self._named)]
        return (*found, CrashTotal(OTHER, OTHER, rest))


def expose_crashes(page: Page, node: str, found: Iterable[CrashTotal]) -> None:
    """Add the totals."""
    totals: Counter[tuple[str, str]] = Counter()
    for one in found:
        totals[one.module, one.reason] += one.total
    for (module, reason), count in totals.items():
        page.add("beam_crashes_total", count, node=node, module=module, reason=reason)
