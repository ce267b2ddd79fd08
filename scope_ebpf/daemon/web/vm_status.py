# SPDX-License-Identifier: Apache-2.0
"""
One VM as the daemon last read it: the page ``/vm/PID`` and the document ``/api/v1/vm/PID``.

Nothing is read for a request: a client cannot make the daemon work for it.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Literal

from scope_ebpf.beam.layouts.checks import KINDS
from scope_ebpf.beam.vm.threads import ROLES
from scope_ebpf.daemon.web.status_page import head, text
from scope_ebpf.metrics.exposition import refused
from scope_ebpf.plain import plain
from scope_ebpf.relations import checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.daemon.loop import Daemon
    from scope_ebpf.metrics.reading import Reading
    from scope_ebpf.metrics.snapshot import SnapshotReading, Top
    from scope_ebpf.results.documents.checks import CheckDocument
    from scope_ebpf.results.documents.status import (
        RankedProcess,
        RankedProcesses,
        SchedulerType,
        VmStatus,
    )

_PATH = re.compile(r"(/api/v1)?/vm/([1-9][0-9]{0,9})")
#: Characters of a name.
_NAME = 255
#: Rankings of a document, with the heading and the unit of each.
_RANKINGS: tuple[tuple[Literal["mailboxes", "memory", "reductions"], str, str], ...] = (
    ("mailboxes", "longest mailboxes", "messages"),
    ("memory", "largest processes", "bytes"),
    ("reductions", "busiest processes", "reductions a second"),
)


def answer(daemon: Daemon, path: str) -> tuple[Literal["html", "json"], str] | None:
    """What is at *path*, with its kind; None if it is no path of a VM that is observed."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    for watch in daemon.targets.watches:
        if watch.target.pid == int(found[2]):
            status = status_of(watch.reading, time.time())
            # Markup is no markup, even for a browser that takes the document for a page.
            made = json.dumps(status).replace("<", "\\u003c")
            return ("json", made) if found[1] else ("html", page(status))
    return None


def status_of(reading: Reading, now: float) -> VmStatus:
    """The document of a reading at *now*, seconds since 1970; impossible figures are left out."""
    reading, impossible = checked(reading)
    found, counters = reading.findings, reading.counters
    sampled = reading.accounting.sampled if reading.accounting else None
    working = sampled.working if sampled else None
    online = counters.online[0] if counters else 0
    is_checked = found is not None and found.document is not None
    return {
        "schema": 1,
        "pid": int(reading.info["pid"]),
        "node": plain(reading.node[:_NAME]),
        "otp_release": plain(reading.info["otp_release"]),
        "uptime_seconds": round(reading.process.uptime, 3),
        "cpu_seconds": reading.process.cpu_seconds,
        "resident_bytes": reading.process.rss_bytes,
        "utilization": (
            None if working is None or not online else round(min(1.0, working / online), 4)
        ),
        "last_check": found.document if found else None,
        "check_age_seconds": _age(found.taken, now) if found and is_checked else None,
        "check_refused": (found.refused or None) if found else None,
        "top": _top(reading.snapshot, now) if reading.snapshot else None,
        "schedulers": list(_schedulers(reading)),
        "overhead": reading.hooks.overhead,
        "budget": reading.hooks.budget,
        "refused": sorted({*refused(reading), *impossible}),
    }


def _age(taken: float, now: float) -> float:
    return round(max(0.0, now - taken), 1)


def _top(taken: SnapshotReading, now: float) -> RankedProcesses:
    def ranked(ranking: list[Top]) -> list[RankedProcess]:
        names = taken.names
        return [{"name": plain(names.get(r.pid, "?")[:_NAME]), "value": r.value} for r in ranking]

    return {
        "age_seconds": _age(taken.taken, now),
        "processes": taken.read,
        "messages": taken.messages,
        "memory_bytes": taken.memory,
        "mailboxes": ranked(taken.mailboxes),
        "memory": ranked(taken.memories),
        "reductions": ranked(taken.rates),
    }


def _schedulers(reading: Reading) -> Iterable[SchedulerType]:
    accounting, counters = reading.accounting, reading.counters
    busy = accounting.sampled.busy_wait if accounting and accounting.sampled else None
    for number, kind in enumerate(KINDS):
        role = ROLES.index(kind)
        on = None if reading.threads is None else float(reading.threads[role]["on_ns"]) / 1e9
        yield {
            "type": kind,  # type: ignore[typeddict-item]
            "threads": accounting.counts[role] if accounting else None,
            "online": counters.online[number] if counters else None,
            "waiting": int(counters.waiting[number]) if counters else None,
            "cpu_seconds": None if on is None else round(on, 3),
            "busy_wait_seconds": busy[number] if busy else None,
        }


def page(status: VmStatus) -> str:
    """The page of a document, as HTML."""
    parts = [
        head(f"{status['node']} - scope-ebpf"),
        f'<p><a href="/">all VMs</a> &middot; <a href="/api/v1/vm/{status["pid"]}">JSON</a></p>',
        f"<h2>{text(status['node'])}</h2>",
        f"<p>{_figures(status)}</p>",
        *_check(status),
        *_tables(status),
        "</body></html>",
    ]
    return "\n".join(parts)


def _figures(status: VmStatus) -> str:
    use = status["utilization"]
    work = "" if use is None else f", schedulers at work {use:.0%} of the last minute"
    return (
        f"pid {status['pid']}, OTP {text(status['otp_release'])}, up "
        f"{status['uptime_seconds']:,.0f} s, {status['cpu_seconds']:,.0f} s of CPU, "
        f"{status['resident_bytes'] / 1e6:,.0f} MB resident{work}. Hooks take "
        f"{status['overhead']:.3%} of its CPU; the budget is {status['budget']:.2%}."
    )


def _check(status: VmStatus) -> Iterable[str]:
    found = status["last_check"]
    if found is None:
        why = status["check_refused"] or "it was not checked"
        yield f"<p>no verdict: {text(why)}</p>"
        return
    verdict = found["verdict"]
    yield f"<p><b>{text(verdict['summary'])}</b></p>"
    yield f"<p>checked {status['check_age_seconds']} s ago</p>"
    yield from _findings(found)
    missing = [(one["what"], one["reason"]) for one in found["not_checked"]]
    if missing:
        yield _table(("not checked", "why"), missing)


def _findings(found: CheckDocument) -> Iterable[str]:
    rows = [
        (one["severity"], one["kind"], one["summary"], one["confidence"], "; ".join(one["next"]))
        for one in found["findings"]
    ]
    if rows:
        yield _table(("severity", "kind", "what", "confidence", "next"), rows)


def _tables(status: VmStatus) -> Iterable[str]:
    rows = [tuple("-" if one is None else f"{one}" for one in s.values()) for s in _rows(status)]
    yield "<h3>schedulers</h3>"
    yield _table(("type", "threads", "online", "waiting", "CPU seconds", "of it spinning"), rows)
    top = status["top"]
    if top is None:
        yield "<p>The process table was not read yet, or cannot be read.</p>"
        return
    yield (
        f"<p>{top['processes']:,} processes, {top['messages']:,} messages wait, "
        f"{top['memory_bytes'] / 1e6:,.0f} MB; read {top['age_seconds']} s ago</p>"
    )
    for key, heading, unit in _RANKINGS:
        yield f"<h3>{heading}</h3>"
        yield _table(("process", unit), [(one["name"], f"{one['value']:,}") for one in top[key]])


def _rows(status: VmStatus) -> Iterable[dict[str, object]]:
    return [dict(one) for one in status["schedulers"]]


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; all of its cells are escaped."""
    lines = ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    first = "".join(f"<th>{one}</th>" for one in headings)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{first}</tr>{body}</table>"
