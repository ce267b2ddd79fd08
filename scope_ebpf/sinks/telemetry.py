# SPDX-License-Identifier: Apache-2.0
"""Telemetry events as a table for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from scope_ebpf.results.telemetry import Happened, Row, Telemetry

_ROW = "{:>9} {:>8} {:>6} {:>8} {:>8} {:>8}  {}"
_HEADINGS = ("COUNT", "PER S", "ERRORS", "MEAN", "P50", "P99", "LABELS")
#: What is before it where counts are estimates, which are so many standard errors from the truth.
_ERROR, _SURE = "{:>6} ", 1.96
_ERRORS = "counts and rates are estimates: the truth is within ± in 95 of 100 cases"
#: Characters of one label.
_WIDTH = 60
#: What each of the counts of refused events means.
_REFUSED = {
    "large_map": "events with labels in a map of more than 32 keys, which are not read",
    "overflow": "events had no row of their own",
    "name": "events whose name is no list of at most eight atoms are left out",
    "no_frame": "events whose arguments were not found on the stack are left out",
    "measure": "measurements were no small integers",
    "label": "labels were neither atoms, integers nor binaries",
    "unreadable": "events of which memory could not be read",
}


def lines(found: Telemetry) -> list[str]:
    """Write *found*, a block for each event."""
    target = found.target
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {sum(row.count for row in found.rows):,} events, by {found.via}"
    )
    text = [head]
    estimated = any(row.count_error for row in found.rows)
    if found.rows:
        text.append((_ERROR.format("±") if estimated else "") + _ROW.format(*_HEADINGS))
    event = None
    for row in found.rows:
        if row.event != event:
            event = row.event
            text.append(spelled(event))
        text.append(_error(row, estimated=estimated) + _row(row, found.seconds))
    text += [_ERRORS] * estimated
    text += [f"{n:,} {_REFUSED[name]}" for name, n in found.refused.items() if n]
    text += found.notes
    return [plain(line) for line in [*text, _cost(found)]]


def event_line(event: Happened, pid: str, wall_offset_ns: int) -> str:
    """One event as a line of a stream; *pid* is the text of its process."""
    seconds, rest = divmod(event.time_ns + wall_offset_ns, 10**9)
    at = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"
    took = "-" if event.duration is None else duration(event.duration, "")
    labels = " ".join(
        f"{name}={'-' if value is None else spelled(value)[:_WIDTH]}"
        for name, value in event.labels.items()
    )
    return plain(f"{at}  {pid:<14} {took:>8}  {spelled(event.event)}  {labels}".rstrip())


def _error(row: Row, *, estimated: bool) -> str:
    if not estimated:
        return ""
    error = _SURE * row.count_error
    return _ERROR.format("?" if error >= 1 else f"{error:.1%}")


def _row(row: Row, seconds: float) -> str:
    measured = row.duration()
    times = [duration(measured[k], "") for k in ("mean", "p50", "p99")] if measured else ["-"] * 3
    return _ROW.format(
        f"{row.count:,}",
        f"{row.count / seconds:.1f}" if seconds else "-",
        "-" if row.error_ratio is None else f"{row.error_ratio:.1%}",
        *times,
        _labels(row),
    ).rstrip()


def _labels(row: Row) -> str:
    if row.labels is None:
        return "(other)"
    named = [
        f"{name}={'-' if value is None else spelled(value)[:_WIDTH]}"
        for name, value in row.named.items()
    ]
    more = [
        f"{name.removesuffix('_seconds')}={_measured(name, one['mean'])}"
        for name, one in row.measurements().items()
    ]
    return " ".join(named + more)


def _measured(name: str, mean: float) -> str:
    return duration(mean, "") if name.endswith("_seconds") else f"{mean:.0f}"


def _cost(found: Telemetry) -> str:
    hits = f"cost: {found.hits:,} hits, {found.foreign:,} of them other lookups"
    if found.cpu_seconds is None:
        return hits
    share = "" if found.cpu_share is None else f", {found.cpu_share:.1%} of the VM's"
    return f"{hits}; about {found.cpu_seconds:.3f} s of CPU{share}"
