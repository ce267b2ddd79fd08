# SPDX-License-Identifier: Apache-2.0
"""Calls of marked functions as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.marks import MarkedCalls, Marks

_ROW = "{:<44.44} {:>10} {:>6} {:>9} {:>6} {:>8} {:>8} {:>8}  {}"
_HEADINGS = ("FUNCTION", "CALLS", "+-", "CALLS/S", "FAIL", "MEAN", "p50", "p99", "")
#: Tags of one callback that are shown.
_TAGS = 4

_KEYS: dict[str, Callable[[MarkedCalls], float]] = {
    "calls": lambda one: one.calls,
    "time": lambda one: one.calls * (one.durations.mean() or 0.0),
    "failures": lambda one: one.failures or 0,
}
#: Names for ``--sort``.
SORTS = tuple(_KEYS)


def lines(found: Marks, sort: str, limit: int) -> list[str]:
    """Write *found*, at most *limit* rows with most of *sort*."""
    target, share = found.target, found.cost.share
    cost = (
        "hooks took too little to measure"
        if share is None
        else f"hooks took {share:.1%} of its CPU"
    )
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {found.modules} modules marked ({found.profile}), {cost}"
    )
    text = [
        head,
        _ROW.format(*_HEADINGS).rstrip(),
    ]
    rows = sorted(found.functions, key=_KEYS[sort], reverse=True)
    text += [_row(one, found.seconds) for one in rows[:limit]]
    if not rows:
        text.append("no call of a marked function was seen")
    if len(rows) > limit:
        text.append(f"and {len(rows) - limit} more")
    if found.lost:
        text.append(f"{found.lost} entries found no room or could not be read")
    return [plain(line) for line in [*text, *found.notes]]


def _row(one: MarkedCalls, seconds: float) -> str:
    times = (one.durations.mean(), one.durations.quantile(0.5), one.durations.quantile(0.99))
    return _ROW.format(
        spelled(f"{one.module}:{one.function}/{one.arity}"),
        f"{one.calls}",
        f"{one.error:.0%}" if one.error else "",
        f"{one.calls / max(seconds, 1e-9):.1f}",
        "-" if one.failures is None else f"{one.failures}",
        *("-" if value is None else duration(value, "") for value in times),
        "  ".join(part for part in (_most(one.tags), _most(one.returned, "-> ")) if part),
    ).rstrip()


def _most(counts: dict[str, int] | None, before: str = "") -> str:
    """The most frequent of some counts."""
    rows = sorted((counts or {}).items(), key=lambda row: -row[1])[:_TAGS]
    return before + ", ".join(f"{name or '(none)'} {n}" for name, n in rows) if rows else ""
