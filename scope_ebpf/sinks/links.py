# SPDX-License-Identifier: Apache-2.0
"""Links as a table for people: a row for each peer, and below it who waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, refusals, short, spelled

if TYPE_CHECKING:
    from scope_ebpf.results.links import Links, Pair, Row

_ROW = "{:<28} {:<9} {:<7} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>8} {:>4} {:>7} {:>5} {:>7} {:>5}"
_HEADINGS = (
    *("PEER", "STATE", "CARRIER", "IN B/S", "OUT", "IN P/S", "OUT", "QUEUED", "DRIVER"),
    *("FULL", "WAIT", "SILENT", "TICKS", "RTT", "RETR"),
)
#: Processes that wait for a link, and of which each has its line.
_SENDERS = 3


def lines(found: Links, limit: int) -> list[str]:
    """Write *found*, at most *limit* links: the full ones and those with the longest queues."""
    target = found.target
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{_count(len(found.rows), 'link')}, no hooks, {found.cpu_seconds:.3f} s of CPU"
    )
    text = [head]
    if found.rows:
        text.append(_ROW.format(*_HEADINGS).rstrip())
    else:
        text.append("no connection to another node, and none being set up")
    for row in found.rows[:limit]:
        text += _lines(row)
    if len(found.rows) > limit:
        text.append(f"and {_count(len(found.rows) - limit, 'link')} more")
    text += [f"not read: {line}" for line in refusals(found.refused.items())]
    return [plain(line) for line in text]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(row: Row) -> list[str]:
    text = [_ROW.format(*_cells(row)).rstrip()]
    for one in row.suspended[:_SENDERS]:
        name = f" {spelled(one.name)}" if one.name else ""
        text.append(f"  {one.process}{name} waits for it, for {one.seconds:.1f} s or longer")
    more = (row.suspended_total or 0) - len(row.suspended[:_SENDERS])
    if more > 0:
        text.append(f"  and {more} more")
    return text


def _cells(row: Row) -> tuple[str, ...]:
    tcp = row.tcp or {}
    rtt, again = tcp.get("rtt_seconds"), tcp.get("retransmits")
    full = "-" if row.full_seconds is None else f">={row.full_seconds:.1f} s"
    return (
        row.peer,
        "hidden" if row.kind == "hidden" and row.state == "connected" else row.state,
        "tls" if row.tls else row.carrier or "-",
        *_both(row.octet_rate),
        *_both(row.packet_rate),
        short(row.queued),
        "-" if row.driver_queued is None else short(row.driver_queued),
        full,
        "-" if row.suspended_total is None else str(row.suspended_total),
        "-" if row.silent_seconds is None else f"{row.silent_seconds:.1f} s",
        "-" if row.ticks_missed is None else f"{row.ticks_missed}/{row.ticks_limit}",
        "-" if rtt is None else duration(rtt, ""),
        "-" if again is None else short(again),
    )


def _both(rate: Pair | None) -> tuple[str, str]:
    return ("-", "-") if rate is None else (short(rate.received), short(rate.sent))
