# SPDX-License-Identifier: Apache-2.0
"""Processes that did not run during a whole profile of waiting: where they are, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.arrays import within
from scope_ebpf.beam.processes.table import (
    ACTIVE,
    DIRTY_ACTIVE_SYS,
    DIRTY_RUNNING,
    DIRTY_RUNNING_SYS,
    IDENTITY,
    SUSPENDED,
)
from scope_ebpf.beam.processes.view import Viewer
from scope_ebpf.beam.servers.looks import IDLE
from scope_ebpf.beam.servers.waiting import ABOVE, calls, stacks, waiting
from scope_ebpf.results.profile import Waited

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.names import Identity
    from scope_ebpf.beam.servers.waiting import Stacks, Waiting
    from scope_ebpf.beam.vm.target import Target

#: Processes whose stacks are read, those first that others hold up; groups that are kept.
_MOST_STACKS, _MOST_GROUPS = 4096, 1000
#: Flags of a process with work for a dirty scheduler.
_DIRTY = 1 << 26 | 1 << 27 | DIRTY_ACTIVE_SYS | DIRTY_RUNNING | DIRTY_RUNNING_SYS
#: Groups in the order in which they are shown, by why they wait.
_ORDER = ("suspended", "calls", "run_queue", "dirty", "receive")


def waited(target: Target, still: Iterable[tuple[int, int]]) -> tuple[list[Waited], int]:
    """
    Group processes that have not run; *still* has where their structs lie, and their code.

    The groups, those that others hold up first, and how many servers had nothing to do.
    """
    viewer = Viewer(target, IDENTITY)
    rows = viewer.table.snapshot().rows
    places = np.array(sorted(still), np.uint64).reshape(-1, 2)
    rows = rows[within(rows["pointer"], places[:, 0])]
    at = np.searchsorted(places[:, 0], rows["pointer"])
    rows = rows[rows["pc"] == places[at, 1]]
    functions = viewer.names.current_functions(rows)
    reasons = _reasons(rows)
    idle = (
        np.array([of is not None and of[:2] in IDLE for of in functions], np.bool_)
        & (rows["mailbox"] == 0)
        & (reasons == events.WAIT_RECEIVE)
    )
    calling = np.array([calls(of) for of in functions], np.bool_)
    rank = np.where(calling | (reasons != events.WAIT_RECEIVE), 0, 1)
    chosen = np.flatnonzero(~idle)
    chosen = chosen[np.argsort(rank[chosen], kind="stable")]
    details = _details(viewer, rows, chosen[:_MOST_STACKS], calling)
    identities, names = viewer.names.identities(rows), viewer.names.registered(rows)
    groups: dict[tuple[str, ...], Waited] = {}
    for index in chosen.tolist():
        caller, server = details.get(int(rows["id"][index]), ("", ""))
        why = "calls" if calling[index] else events.WAIT_REASONS[int(reasons[index])]
        who = _who(names[index], identities[index])
        key = who, why, str(functions[index] or "?"), caller, server
        if key not in groups and len(groups) >= _MOST_GROUPS:
            key = "others", why, "?", "", ""
        group = groups.setdefault(key, Waited(0, *key))
        groups[key] = group._replace(processes=group.processes + 1)
    made = sorted(groups.values(), key=lambda one: (_ORDER.index(one.why), -one.processes, one.who))
    return made, int(idle.sum())


def _reasons(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Why each process waits, as ``reason_of`` in wait.bpf.c says."""
    state = rows["state"].astype(np.int64)
    found = np.where(state & ACTIVE, events.WAIT_RUN_QUEUE, events.WAIT_RECEIVE)
    found = np.where(state & _DIRTY, events.WAIT_DIRTY, found)
    suspended: NDArray[np.int64] = np.where(state & SUSPENDED, events.WAIT_SUSPENDED, found)
    return suspended


def _who(name: str | None, identity: Identity) -> str:
    """The shortest text that says what a process is, as ``Label.who``."""
    of_server = identity.module if identity.behaviour else None
    return name or of_server or (str(identity.initial_call) if identity.initial_call else "?")


def _details(
    viewer: Viewer, rows: NDArray[np.void], chosen: NDArray[np.int64], calling: NDArray[np.bool_]
) -> dict[int, tuple[str, str]]:
    """By pid term: the function that called what a process waits in, and for whom it waits."""
    seen = stacks(viewer, rows[chosen])
    callers = set(rows["id"][chosen][calling[chosen]].tolist())
    numbers = [number for number, pid in enumerate(seen.pids) if pid in callers]
    found = waiting(viewer, seen.some(numbers), {})
    servers = _servers(viewer, [one for one in found if one is not None])
    return {
        pid: (_caller(viewer, seen, number), servers.get(pid, ""))
        for number, pid in enumerate(seen.pids)
        if seen.stood[number]
    }


def _caller(viewer: Viewer, seen: Stacks, number: int) -> str:
    """The innermost function on the stack that is none of those that call servers for others."""
    words = seen.words[number]
    places = words[(words & np.uint64(3) == 0) & viewer.code.inside(words)]
    for address in places.tolist():
        found = viewer.code.location(address - 1)
        if found is not None and found.module not in ABOVE | {"gen"}:
            return f"{found} ({found.location})" if found.location else str(found)
    return ""


def _servers(viewer: Viewer, found: list[Waiting]) -> dict[int, str]:
    """Which server each caller waits for, by its name or what it runs."""
    pids = np.array(sorted({one.server for one in found if one.server is not None}), np.uint64)
    rows = viewer.table.at(viewer.table.slots_of(pids)).rows
    names, identities = viewer.names.registered(rows), viewer.names.identities(rows)
    texts = {
        pid: _who(name, identity)
        for pid, name, identity in zip(rows["id"].tolist(), names, identities, strict=True)
    }
    return {one.caller: one.name or texts.get(one.server or 0, "?") for one in found}
