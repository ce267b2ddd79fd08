# SPDX-License-Identifier: Apache-2.0
"""Servers as a table for people: modules, then edges, then the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.results.genservers import Edge, GenServers, Module
    from scope_ebpf.results.server_events import Messages, Times
    from scope_ebpf.results.server_tags import Tag

_ROW = "{:<32.32} {:>6} {:>5} {:>5} {:>6} {:>6} {:>5}  {}"
#: The first is that of modules; of other rows it is what they are.
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


def lines(found: GenServers, sort: str, limit: int, by: str = "module") -> list[str]:
    """Write *found*, at most *limit* rows with most of *sort*; a row is of *by*."""
    target = found.target
    looks = "look" if found.looks == 1 else "looks"
    head = (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {found.looks} {looks}, {_hooks(found)}, "
        f"{found.cpu_seconds:.2f} s of CPU"
    )
    wide = found.cost is not None
    row, headings = (_WIDE_ROW, _WIDE_HEADINGS) if wide else (_ROW, _HEADINGS)
    text = [head, row.format("MODULE" if by == "tag" else by.upper(), *headings[1:])]
    modules = sorted(found.modules, key=lambda one: (_KEYS[sort](one), _traffic(one)), reverse=True)
    for one in modules[:limit]:
        text.append(_wide_row(one) if wide else _row(one))
        text += [
            _wide_tag(tag) if wide else _tag(tag)
            for tag in sorted(found.tags, key=_weight, reverse=True)
            if tag.module == one.module
        ]
    if len(modules) > limit:
        text.append(f"and {len(modules) - limit} more")
    if found.edges:
        rates = ", calls per second" if wide else ""
        text += ["", f"who waits for whom, callers that wait at any time{rates}"]
        text += [_edge(edge, found.seconds) for edge in found.edges[:_EDGES]]
    if found.unresolved >= 0.05:
        text.append(
            f"{found.unresolved:.1f} callers at any time wait for a server that was not identified"
        )
    text += found.notes
    verdict = found.verdict
    start = (
        f"most waiting goes through {spelled(verdict.bottleneck)}: " if verdict.bottleneck else ""
    )
    return [plain(line) for line in [*text, "", start + spelled(verdict.because)]]


def _traffic(one: Module) -> tuple[float, float]:
    """What comes first where the figure that was asked for is the same."""
    seen = one.messages
    return (seen.calls + seen.casts + seen.infos if seen else 0), one.utilization


def _hooks(found: GenServers) -> str:
    if found.cost is None:
        return "no hooks"
    if found.cost.share is None:
        return "hooks took too little to measure"
    return f"hooks took {found.cost.share:.1%} of its CPU"


def _edge(edge: Edge, seconds: float) -> str:
    calls = "" if edge.calls is None else f"  {edge.calls / max(seconds, 1e-9):.1f}"
    return f"  {spelled(edge.caller)} -> {spelled(edge.callee)}  {edge.blocked:.2f}{calls}"


def _weight(tag: Tag) -> tuple[bool, float, float]:
    """Tags with most time of the module first, those that are not distinguished at the end."""
    return tag.tag is not None, tag.service_share or 0.0, tag.waiting_callers


def _tag_name(tag: Tag) -> str:
    return "  (other)" if tag.tag is None else f"  {spelled(tag.tag)}"


def _tag(tag: Tag) -> str:
    blank = [""] * 5
    return _ROW.format(_tag_name(tag), *blank, f"{tag.waiting_callers:.1f}", "").rstrip()


def _wide_tag(tag: Tag) -> str:
    """Write one tag; where a module has what its servers do, a tag has its part of their time."""
    share = tag.service_share
    return _WIDE_ROW.format(
        _tag_name(tag),
        "",
        *_message_cells(tag.messages)[0],
        *[""] * 4,
        f"{tag.waiting_callers:.1f}",
        *_message_cells(tag.messages)[1],
        "" if share is None else f"{100 * share:.0f}% of the time",
    ).rstrip()


def _message_cells(seen: Messages | None) -> tuple[list[str], list[str]]:
    """Rates and times; failures and abandoned calls."""
    if seen is None:
        return [""] * 7, [""] * 2
    times = [_time(of, part) for of in (seen.queue, seen.service) for part in (0.5, 0.99)]
    failed = ["-" if n is None else f"{n}" for n in (seen.failures, seen.abandoned)]
    return [*(f"{rate:.1f}" for rate in seen.rates), *times], failed


def _wide_row(one: Module) -> str:
    known = one.processes > 0
    cells, failed = _message_cells(one.messages)
    return _WIDE_ROW.format(
        spelled(one.module),
        f"{one.processes:.0f}",
        *cells,
        f"{100 * one.utilization:.0f}%" if known else "",
        f"{100 * one.busiest:.0f}%" if known else "",
        f"{one.mailbox:.1f}" if known else "",
        one.longest if known else "",
        f"{one.waiting_callers:.1f}",
        *failed,
        _busy_in(one),
    ).rstrip()


def _time(of: Times, part: float) -> str:
    """A quantile; empty if there was nothing, "-" if it is not known."""
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
