# SPDX-License-Identifier: Apache-2.0
"""Servers as a table for people: modules, then edges, then the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.genservers import Edge, GenServers, Module
    from scope_ebpf.results.server_events import Times

_ROW = "{:<32.32} {:>6} {:>5} {:>5} {:>6} {:>6} {:>5}  {}"
_HEADINGS = ("MODULE", "PROCS", "BUSY", "MAX", "MAIL", "LONG", "WAIT", "BUSY IN")
#: The same with what hooks see.
_WIDE_ROW = (
    "{:<28.28} {:>5} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>5} {:>5} {:>6} {:>5} {:>5} {:>5} "
    "{:>5}  {}"
)
_WIDE_HEADINGS = (
    *("MODULE", "PROCS", "CALL/S", "CAST/S", "INFO/S", "QUEUE", "p99", "SERVICE", "p99"),
    *("BUSY", "MAX", "MAIL", "LONG", "WAIT", "FAIL", "LATE", "BUSY IN"),
)
_EDGES = 10

_KEYS: dict[str, Callable[[Module], float]] = {
    "waiting": lambda one: max(one.waiting_callers, one.mailbox * one.processes),
    "busy": lambda one: one.busiest,
    "calls": lambda one: one.messages.calls if one.messages else 0,
    "queue": lambda one: one.longest,
}
#: Names for ``--sort``.
SORTS = tuple(_KEYS)


def lines(found: GenServers, sort: str, limit: int) -> list[str]:
    """Write *found*, at most *limit* modules with most of *sort*."""
    target = found.target
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {found.looks} looks, {_hooks(found)}, "
        f"{found.cpu_seconds:.2f} s of CPU"
    )
    wide = found.cost is not None
    text = [head, _WIDE_ROW.format(*_WIDE_HEADINGS) if wide else _ROW.format(*_HEADINGS)]
    modules = sorted(found.modules, key=_KEYS[sort], reverse=True)
    text += [_wide_row(one) if wide else _row(one) for one in modules[:limit]]
    if len(modules) > limit:
        text.append(f"and {len(modules) - limit} modules more")
    if found.edges:
        rates = ", calls per second" if wide else ""
        text += ["", f"who waits for whom, seconds of waiting per second{rates}"]
        text += [_edge(edge, found.seconds) for edge in found.edges[:_EDGES]]
    if found.unresolved >= 0.05:
        text.append(f"for whom {found.unresolved:.1f} callers wait at any time was not found out")
    text += found.notes
    verdict = found.verdict
    start = (
        f"most waiting goes through {spelled(verdict.bottleneck)}: " if verdict.bottleneck else ""
    )
    return [plain(line) for line in [*text, "", start + spelled(verdict.because)]]


def _hooks(found: GenServers) -> str:
    if found.cost is None:
        return "no hooks"
    share = "?" if found.cost.share is None else f"{found.cost.share:.1%}"
    return f"hooks took {share} of its CPU"


def _edge(edge: Edge, seconds: float) -> str:
    calls = "" if edge.calls is None else f"  {edge.calls / max(seconds, 1e-9):.1f}"
    return f"  {spelled(edge.caller)} -> {spelled(edge.callee)}  {edge.blocked:.2f}{calls}"


def _wide_row(one: Module) -> str:
    seen = one.messages
    known = one.processes > 0
    counts = ["", "", ""] if seen is None else [f"{rate:.1f}" for rate in seen.rates]
    times = ["", "", "", ""]
    if seen is not None:
        times = [_time(of, part) for of in (seen.queue, seen.service) for part in (0.5, 0.99)]
    failed = [""] * 2
    if seen is not None:
        failed = ["-" if n is None else f"{n}" for n in (seen.failures, seen.abandoned)]
    return _WIDE_ROW.format(
        spelled(one.module),
        f"{one.processes:.0f}",
        *counts,
        *times,
        f"{100 * one.utilization:.0f}%" if known else "",
        f"{100 * one.busiest:.0f}%" if known else "",
        f"{one.mailbox:.1f}" if known else "",
        one.longest if known else "",
        f"{one.waiting_callers:.1f}",
        *failed,
        _busy_in(one),
    ).rstrip()


def _time(of: Times, part: float) -> str:
    """A quantile; empty if there was nothing, "-" if it cannot be told."""
    if not of.ended.any() and (of.cut is None or not of.cut.any()):
        return ""
    found = of.quantile(part)
    return "-" if found is None else duration(found, "")


def _busy_in(one: Module) -> str:
    return ", ".join(f"{spelled(name)} {100 * share:.0f}%" for name, share in one.busy_in[:1])


def _row(one: Module) -> str:
    return _ROW.format(
        spelled(one.module),
        f"{one.processes:.0f}",
        f"{100 * one.utilization:.0f}%",
        f"{100 * one.busiest:.0f}%",
        f"{one.mailbox:.1f}",
        one.longest,
        f"{one.waiting_callers:.1f}",
        _busy_in(one),
    ).rstrip()
