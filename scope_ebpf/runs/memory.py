# SPDX-License-Identifier: Apache-2.0
"""Where the memory of a VM is, as a document: of one look, or of two and the growth between."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scope_ebpf.arrays import distinct, within
from scope_ebpf.beam.held.memory import KINDS, TABLES, heap_bytes
from scope_ebpf.beam.processes.detail import FIELDS
from scope_ebpf.beam.processes.table import binary_bytes
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.cgroups import memory_limit
from scope_ebpf.errors import ReadRefusedError, RefusedFileError
from scope_ebpf.runs.held_tables import described, growth
from scope_ebpf.sandbox.proc import read_bounded, status_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scope_ebpf.beam.held.memory import Look
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents import memory as documents
    from scope_ebpf.results.documents.held import EtsTable

#: By what holders are sorted.
SORTS = ("size", "growth")
#: Processes whose exact size is read, for each that is shown.
_CANDIDATES = 2
#: Mailboxes that are read to find the largest processes, the longest first, and messages of all:
#: the messages may lie outside of heaps, and few of them may be large. Messages of one mailbox, at
#: most, that are read for that.
_MAILBOXES, _MESSAGES, _WALK = 20_000, 100_000, 200


@dataclass(frozen=True, slots=True)
class Span:
    """A look at a VM's memory, and the one before it, where there was one."""

    target: Target
    now: Look
    before: Look | None
    #: Seconds between them; 0 for one look.
    seconds: float
    #: Holders of each kind that are shown, and by what they are sorted.
    limit: int
    sort: str = "size"

    def rate(self, now: int | None, before: int | None, digits: int = 1) -> float | None:
        """The growth a second; None where one of the two is not known."""
        if now is None or before is None or not self.seconds:
            return None
        return round((now - before) / self.seconds, digits)


def document(span: Span) -> documents.MemoryDocument:
    """Make the document of *span*, whose VM is still there."""
    now = span.now
    viewer = _viewer(span)
    processes, binaries = _holders(span, viewer)
    snapshot = now.processes
    timers = now.allocators.timers if now.allocators else None
    return {
        "schema": 1,
        "target": span.target.as_json(),
        "time": round(time.time(), 3),
        "duration_seconds": round(span.seconds, 3),
        "kinds": cast("documents.MemoryKinds", dict(now.kinds)),
        "kinds_per_second": _kinds_growth(span),
        "allocators": _allocators(span),
        "outside": _outside(span.target.pid, now),
        "cgroup": _cgroup(span.target.pid),
        "tables": _tables(span),
        "persistent_terms": _terms(span, viewer),
        "timers": None if timers is None else {"receive": timers.receive, "bif": timers.bif},
        "timer_receivers": _receivers(span, viewer),
        "newest_atoms": list(now.newest[: span.limit]),
        "processes_total": snapshot.total if snapshot else None,
        "torn": snapshot.torn + snapshot.unreadable if snapshot else 0,
        "processes": processes,
        "processes_beyond_rows_bytes": beyond_rows(now.kinds["processes"], processes),
        "binaries": binaries,
        "ets_tables": _ets(span),
        "not_read": [{"what": what, "reason": why} for what, why in now.refused.items()],
        "seconds": round(now.seconds + (span.before.seconds if span.before else 0.0), 3),
    }


def beyond_rows(total: int | None, rows: list[documents.MemoryHolder]) -> int | None:
    """Bytes of the kind processes, *total*, that are not of *rows*; 0 where these have more."""
    return None if total is None else max(0, total - sum(one["memory_bytes"] for one in rows))


def _terms(span: Span, viewer: Viewer | None) -> documents.PersistentTerms | None:
    terms = span.now.terms
    if terms is None:
        return None
    largest: list[documents.PersistentTerm] = [
        {"name": viewer.terms.text(one.key) if viewer else None, "memory_bytes": one.bytes}
        for one in terms.largest[: span.limit]
    ]
    return {"count": terms.count, "memory_bytes": terms.bytes, "largest": largest}


def _viewer(span: Span) -> Viewer | None:
    try:
        return Viewer(span.target, FIELDS)
    except ReadRefusedError as error:
        span.now.refused.setdefault("names", str(error))
        return None


def _kinds_growth(span: Span) -> documents.MemoryGrowth | None:
    if span.before is None:
        return None
    before = span.before.kinds
    rates = {kind: span.rate(span.now.kinds[kind], before[kind]) for kind in KINDS}
    return cast("documents.MemoryGrowth", rates)


def _allocators(span: Span) -> list[documents.HeldAllocator]:
    if span.now.allocators is None:
        return []
    earlier = span.before.allocators if span.before else None
    before = {one.name: one for one in earlier.allocators} if earlier else {}
    made: list[documents.HeldAllocator] = []
    for one in sorted(span.now.allocators.allocators, key=lambda one: -one.carriers):
        inside = sum(blocks for _, blocks in one.kinds.values())
        old = before.get(one.name)
        made.append(
            {
                "what": one.name,
                "carriers_bytes": one.carriers,
                "blocks_bytes": one.blocks,
                "inside_bytes": inside,
                "used_share": round(inside / one.carriers, 4) if one.carriers else None,
                "carriers_bytes_per_second": span.rate(one.carriers, old.carriers if old else None),
                "blocks_bytes_per_second": span.rate(one.blocks, old.blocks if old else None),
            }
        )
    return made


def _outside(pid: int, now: Look) -> documents.OutsideMemory:
    """What the kernel says of the process, and what of it the VM's allocators do not have."""
    try:
        status = read_bounded(Path(f"/proc/{pid}/status"))
    except (OSError, RefusedFileError):
        status = b""
    resident, anonymous, swapped = (
        None if (kilobytes := status_number(status, name)) is None else 1024 * kilobytes
        for name in ("VmRSS", "RssAnon", "VmSwap")
    )
    carriers = sum(one.carriers for one in now.allocators.allocators) if now.allocators else None
    beyond = None
    if anonymous is not None and carriers is not None:
        beyond = max(0, anonymous - carriers)
    return {
        "resident_bytes": resident,
        "anonymous_bytes": anonymous,
        "swapped_bytes": swapped,
        "carriers_bytes": carriers,
        "beyond_carriers_bytes": beyond,
    }


def _cgroup(pid: int) -> documents.CgroupMemory | None:
    found = memory_limit(pid)
    if found is None:
        return None
    return {
        "used_bytes": found.used,
        "limit_bytes": found.limit,
        "used_share": round(found.used / found.limit, 4),
        "oom_kills": found.kills,
    }


def _tables(span: Span) -> list[documents.TableUse]:
    earlier = span.before.tables if span.before else {}
    made = []
    for name in TABLES:
        if name not in span.now.tables:
            continue
        used, limit = span.now.tables[name]
        before = earlier.get(name)
        row = {
            "what": name,
            "used": used,
            "limit": limit,
            "used_share": round(used / limit, 4) if limit else None,
            "per_second": span.rate(used, before[0] if before else None),
        }
        made.append(cast("documents.TableUse", row))
    return made


def _ets(span: Span) -> list[EtsTable]:
    reading = span.now.ets
    if reading is None:
        return []
    rows, unknown = reading.rows, np.full(len(reading.rows), np.nan)
    objects, memory = unknown, unknown
    if span.before and span.before.ets and span.seconds:
        found = growth(span.before.ets.rows, rows)
        objects, memory = found[0] / span.seconds, found[1] / span.seconds
    key = memory if span.sort == "growth" else rows["memory_bytes"].astype(np.float64)
    order = _largest(key, span.limit)
    try:
        return described(span.target, rows[order], objects[order], memory[order])
    except ReadRefusedError as error:
        span.now.refused.setdefault("ets", str(error))
        return []


def _holders(
    span: Span, viewer: Viewer | None
) -> tuple[list[documents.MemoryHolder], list[documents.MemoryHolder]]:
    """The processes with most memory, and those with most binaries."""
    snapshot = span.now.processes
    if snapshot is None or viewer is None or not len(snapshot.rows):
        return [], []
    rows, limit = snapshot.rows, span.limit
    binaries = binary_bytes(rows)
    more = process_growth(span, rows)
    by_growth = span.sort == "growth"
    sizes, referred = process_sizes(span, rows, viewer)
    held_by = binaries + referred
    large = _largest(more[0] if by_growth else sizes, _CANDIDATES * limit)
    held = _largest(more[1] if by_growth else held_by, limit)
    held = held[(held_by[held] > 0)]
    found = _described(viewer, rows, distinct(np.concatenate([large, held])), more)
    by_pid = {one["pid"]: one for one in found}
    shown = "heap_bytes_per_second" if by_growth else "memory_bytes"
    processes = sorted(found, key=lambda one: -(cast("Any", one)[shown] or 0))[:limit]
    texts = viewer.pids.texts(rows["id"][held])
    return processes, [by_pid[pid] for pid in texts if pid in by_pid]


def process_sizes(
    span: Span, rows: NDArray[np.void], viewer: Viewer
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Bytes of each process of the look's *rows*, of its heaps and mailbox, to find the largest by.

    Also those of binaries that its messages refer to.
    Of long mailboxes they are estimates; that not all mailboxes were read is noted in the look.
    """
    found = heap_bytes(span.target, rows).astype(np.float64)
    waiting = int(np.count_nonzero(rows["mailbox"]))
    if waiting > _MAILBOXES:
        span.now.refused.setdefault(
            "mailboxes",
            f"of {waiting:,} that have messages the {_MAILBOXES:,} longest were read to find the "
            "largest processes",
        )
    chosen = min(waiting, _MAILBOXES)
    longest = _largest(rows["mailbox"].astype(np.float64), chosen)
    fresh = viewer.table.at(np.sort(rows["slot"][longest]).astype(np.int64)).rows
    walked = viewer.sizes(fresh, min(_WALK, _MESSAGES // max(1, chosen)))
    referred = np.zeros(len(rows))
    ids = rows["id"][longest].tolist()
    for into, of in ((found, walked.bytes), (referred, walked.mailboxes.binaries)):
        sizes = dict(zip(fresh["id"].tolist(), of.tolist(), strict=True))
        into[longest] = [sizes.get(pid, size) for pid, size in zip(ids, into[longest], strict=True)]
    return found, referred


def process_growth(
    span: Span, rows: NDArray[np.void]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Growth of heaps and binaries, bytes a second; NaN for a process that was not there."""
    found = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    earlier = span.before.processes if span.before else None
    if earlier is None or not span.seconds or not len(earlier.rows):
        return found
    order = np.argsort(earlier.rows["id"], kind="stable")
    old = earlier.rows["id"][order]
    at = np.minimum(np.searchsorted(old, rows["id"]), len(old) - 1)
    same = old[at] == rows["id"]
    was = order[at[same]]
    measures: tuple[Callable[[NDArray[np.void]], NDArray[np.int64]], ...]
    measures = partial(heap_bytes, span.target), binary_bytes
    for rate, measure in zip(found, measures, strict=True):
        rate[same] = (measure(rows)[same] - measure(earlier.rows)[was]) / span.seconds
    return found


def _receivers(span: Span, viewer: Viewer | None) -> list[documents.TimerReceiver]:
    """The processes that most timers will send to, as they are now."""
    found, snapshot = span.now.timers, span.now.processes
    if found is None or snapshot is None or viewer is None:
        return []
    first = snapshot.rows[found.rows[: span.limit]]
    fresh = viewer.table.at(np.sort(first["slot"]).astype(np.int64)).rows
    names, calls = viewer.names.registered(fresh), viewer.names.initial_calls(fresh)
    known = dict(zip(fresh["id"].tolist(), zip(names, calls, strict=True), strict=True))
    return [
        {
            "pid": viewer.pids.text(pid),
            "name": known[pid][0],
            "initial_call": str(known[pid][1]) if known[pid][1] else None,
            "timers": count,
            "next_due_seconds": round(due, 2),
        }
        for pid, count, due in zip(
            first["id"].tolist(), found.counts.tolist(), found.due.tolist(), strict=False
        )
        if pid in known
    ]


def _described(
    viewer: Viewer,
    rows: NDArray[np.void],
    chosen: NDArray[np.int64],
    more: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> list[documents.MemoryHolder]:
    """The processes *chosen* of *rows*, as they are now; *more* are the growths of *rows*."""
    place = dict(zip(rows["id"][chosen].tolist(), chosen.tolist(), strict=True))
    fresh = viewer.table.at(np.sort(rows["slot"][chosen]).astype(np.int64)).rows
    fresh = fresh[within(fresh["id"], rows["id"][chosen])]
    sizes, exact, waiting = viewer.sizes(fresh)
    names, calls = viewer.names.registered(fresh), viewer.names.initial_calls(fresh)
    held, at = binary_bytes(fresh), [place[pid] for pid in fresh["id"].tolist()]
    return [
        {
            "pid": pid,
            "name": names[index],
            "initial_call": str(calls[index]) if calls[index] else None,
            "memory_bytes": int(sizes[index]),
            "memory_estimated": not bool(exact[index]),
            "binary_bytes": int(held[index]),
            "messages": int(fresh["mailbox"][index]),
            "message_binary_bytes": int(waiting.binaries[index]),
            "heap_bytes_per_second": _known(more[0][at[index]]),
            "binary_bytes_per_second": _known(more[1][at[index]]),
        }
        for index, pid in enumerate(viewer.pids.texts(fresh["id"]))
    ]


def _known(rate: float) -> float | None:
    return None if np.isnan(rate) else round(float(rate), 1)


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the *count* largest of *values* are, the largest first; NaN is the least."""
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    found: NDArray[np.int64] = order[:count].astype(np.int64)
    return found
