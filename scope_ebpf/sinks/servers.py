# SPDX-License-Identifier: Apache-2.0
"""Servers as a table for people: modules, then edges, then the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.genservers import GenServers, Module

_ROW = "{:<32.32} {:>6} {:>5} {:>5} {:>6} {:>6} {:>5}  {}"
_HEADINGS = ("MODULE", "PROCS", "BUSY", "MAX", "MAIL", "LONG", "WAIT", "BUSY IN")
_EDGES = 10

_KEYS: dict[str, Callable[[Module], float]] = {
    "waiting": lambda one: max(one.waiting_callers, one.mailbox * one.processes),
    "busy": lambda one: one.busiest,
    "queue": lambda one: one.longest,
}
#: Names for ``--sort``.
SORTS = tuple(_KEYS)


def lines(found: GenServers, sort: str, limit: int) -> list[str]:
    """Write *found*, at most *limit* modules with most of *sort*."""
    target = found.target
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {found.looks} looks, no hooks, {found.cpu_seconds:.2f} s of CPU"
    )
    text = [head, _ROW.format(*_HEADINGS)]
    modules = sorted(found.modules, key=_KEYS[sort], reverse=True)
    text += [_row(one) for one in modules[:limit]]
    if len(modules) > limit:
        text.append(f"and {len(modules) - limit} modules more")
    if found.edges:
        text += ["", "who waits for whom, seconds of waiting per second"]
        text += [
            f"  {spelled(edge.caller)} -> {spelled(edge.callee)}  {edge.blocked:.2f}"
            for edge in found.edges[:_EDGES]
        ]
    if found.unresolved >= 0.05:
        text.append(f"for whom {found.unresolved:.1f} callers wait at any time was not found out")
    text += found.notes
    verdict = found.verdict
    start = (
        f"most waiting goes through {spelled(verdict.bottleneck)}: " if verdict.bottleneck else ""
    )
    return [plain(line) for line in [*text, "", start + spelled(verdict.because)]]


def _row(one: Module) -> str:
    busy_in = ", ".join(f"{spelled(name)} {100 * share:.0f}%" for name, share in one.busy_in[:1])
    return _ROW.format(
        spelled(one.module),
        f"{one.processes:.0f}",
        f"{100 * one.utilization:.0f}%",
        f"{100 * one.busiest:.0f}%",
        f"{one.mailbox:.1f}",
        one.longest,
        f"{one.waiting_callers:.1f}",
        busy_in,
    ).rstrip()
