# SPDX-License-Identifier: Apache-2.0
"""Servers as a table for people: modules, then edges, then the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.sinks.plain import duration, plain, spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.results.genservers import Edge, GenServers, Module
    from scope_ebpf.results.server_events import Messages, Times
    from scope_ebpf.results.server_tags import Tag

_ROW = "{:<32.32} {:>6} {:>5} {:>5} {:>6} {:>6} {:>5}  {}"
#: The first is that of modules; of other rows it is what they are.
_HEADINGS = ("MODULE", "PROCS", "BUSY", "MAX", "MAIL", "LONG", "WAIT", "BUSY IN")
#: The same with what hooks see; the indexes of the columns above among these.
NARROW = (0, 1, 9, 10, 11, 12, 13, 16)
_WIDE_ROW = (
    "{:<28.28} {:>5} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>5} {:>5} {:>6} {:>5} {:>5} {:>5} "
    "{:>5}  {}"
)
WIDE_HEADINGS = (
    *("MODULE", "PROCS", "CALL/S", "CAST/S", "INFO/S", "QUEUE", "p99", "SERVICE", "p99"),
    *("BUSY", "MAX", "MAIL", "LONG", "WAIT", "FAIL", "LATE", "BUSY IN"),
)
_EDGES = 10

_KEYS: dict[str, Callable[[Module], float]] = {
    "waiting": lambda one: max(one.waiting_callers, one.mail),
    "busy": lambda one: one.busiest,
    "calls": lambda one: one.messages.calls if one.messages else 0,
    "queue": lambda one: one.longest,
}
#: Names for ``--sort``.
SORTS = tuple(_KEYS)


def head(found: GenServers) -> str:
    """What was looked at, for how long, and what it took."""
    target = found.target
    looks = "look" if found.looks == 1 else "looks"
    return (
        f"{target['node'] or '?'}  pid {target['pid']}  OTP {target['otp_release']}  "
        f"{found.seconds:.1f} s, {found.looks} {looks}, {_hooks(found)}, "
        f"{found.cpu_seconds:.2f} s of CPU"
    )


def answer(found: GenServers) -> str:
    """Write the verdict."""
    verdict = found.verdict
    start = (
        f"most waiting goes through {spelled(verdict.bottleneck)}: " if verdict.bottleneck else ""
    )
    return start + spelled(verdict.because)


def ordered(found: GenServers, sort: str) -> list[Module]:
    """Sort the modules, those with most of *sort* first."""
    return sorted(found.modules, key=lambda one: (_KEYS[sort](one), _traffic(one)), reverse=True)


def lines(found: GenServers, sort: str, limit: int, by: str = "module") -> list[str]:
    """Write *found*, at most *limit* rows with most of *sort*; a row is of *by*."""
    wide = found.cost is not None
    row, headings = (_WIDE_ROW, WIDE_HEADINGS) if wide else (_ROW, _HEADINGS)
    text = [head(found), row.format("MODULE" if by == "tag" else by.upper(), *headings[1:])]
    shown = range(len(WIDE_HEADINGS)) if wide else NARROW
    modules = ordered(found, sort)
    for one in modules[:limit]:
        text.append(row.format(*cells_of(one, shown)).rstrip())
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
        text += [edge_text(edge, found.seconds) for edge in found.edges[:_EDGES]]
    if found.unresolved >= 0.05:
        text.append(
            f"{found.unresolved:.1f} callers at any time wait for a server that was not identified"
        )
    return [plain(line) for line in [*text, *found.notes, "", answer(found)]]


def _traffic(one: Module) -> tuple[float, float]:
    """What comes first where the figure that was asked for is the same."""
    seen = one.messages
    return (seen.calls + seen.casts + (seen.infos or 0) if seen else 0), one.utilization


def _hooks(found: GenServers) -> str:
    if found.cost is None:
        return "no hooks"
    if found.cost.share is None:
        return "hooks took too little to measure"
    return f"hooks took {found.cost.share:.1%} of its CPU"


def edge_text(edge: Edge, seconds: float) -> str:
    """Write who waits for whom."""
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
    rates = ["-" if rate is None else f"{rate:.1f}" for rate in seen.rates]
    return [*rates, *times], failed


def cells_of(one: Module, shown: Sequence[int]) -> list[str]:
    """Return the texts of one module, of the columns of WIDE_HEADINGS that are *shown*."""
    known = one.processes != 0
    cells, failed = _message_cells(one.messages)
    texts = [
        spelled(one.module),
        "-" if one.processes is None else f"{one.processes:.0f}",
        *cells,
        f"{100 * one.utilization:.0f}%" if known else "",
        f"{100 * one.busiest:.0f}%" if known else "",
        f"{one.mailbox:.1f}" if known else "",
        f"{one.longest}" if known else "",
        f"{one.waiting_callers:.1f}",
        *failed,
        _busy_in(one),
    ]
    return [texts[index] for index in shown]


def _time(of: Times, part: float) -> str:
    """A quantile; empty if there was nothing, "-" if it is not known."""
    if not of.ended.any() and (of.cut is None or not of.cut.any()):
        return ""
    found = of.quantile(part)
    return "-" if found is None else duration(found, "")


def _busy_in(one: Module) -> str:
    return ", ".join(f"{spelled(name)} {100 * share:.0f}%" for name, share in one.busy_in[:1])
