# SPDX-License-Identifier: Apache-2.0
"""What the daemon would refuse of one VM, found out by doing what it does. Attaches nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks.inspector import Looker
from scope_ebpf.daemon.looks.owners import ROOT, Owner, Shares
from scope_ebpf.daemon.notify import log
from scope_ebpf.daemon.readings.process import read_process
from scope_ebpf.daemon.readings.snapshots import Snapshots
from scope_ebpf.daemon.readings.threads import UNSEEN, unseen
from scope_ebpf.metrics.exposition import refused
from scope_ebpf.metrics.reading import MemoryReading, Reading
from scope_ebpf.relations import checked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.looks.inspector import Found
    from scope_ebpf.daemon.watch import Watch
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.metrics.snapshot import SnapshotReading

#: Why one counter is not told where the others are.
_NOT_FOUND = "it is not found in the VM's memory"
#: What is told of hooks that are in.
_ATTACHED = {"threads", "samples"}


@dataclass(frozen=True, slots=True)
class Trial:
    """
    What the daemon would not show of a VM; *whole* says why it would not observe it at all.

    *hooks* are events that it would not see, *parts* what ``scope_ebpf_refused`` would name,
    each with the reason.
    """

    whole: str = ""
    hooks: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Stand:
    """What snapshots need of a ``watch.Watch``."""

    target: Target
    owner: Owner = ROOT
    snapshot: SnapshotReading | None = None
    memory: MemoryReading | None = None
    trouble: ScopeError | None = None


def trial(pid: int) -> Trial:
    """Look at process *pid* as the daemon does, whatever its config wants and leaves out."""
    with _silent():
        found = Looker(Shares()).look(pid, ROOT, Config(min_age=0.0)).found
        if isinstance(found, Refusal):
            return Trial(whole=str(found.reason))
        if found is None:
            return Trial(whole=f"process {pid} is no VM, or not one any longer")
        try:
            items = found.prepared.planned.plan.items
            hooks = {item.event: item.reason for item in items if not item.attachments}
            return Trial(hooks=hooks, parts=_parts(found))
        finally:
            found.target.identity.close()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the daemon would log to ourselves: it is told in another way."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _parts(found: Found) -> dict[str, str]:
    target, measures = found.target, found.prepared.measures
    stand = _Stand(target)
    Snapshots(lambda: [cast("Watch", stand)], Config).look()
    reading, why = checked(_reading(found, stand))
    why |= stand.memory.refused if stand.memory else {}
    names = {*refused(reading), *why} - _ATTACHED
    if "counters" in names:
        why.setdefault("counters", measures.refused)
    if kinds := unseen(target):
        names.add("samples")
        why["samples"] = f"{', '.join(kinds)}: {UNSEEN}"
    return {name: why.get(name) or _NOT_FOUND for name in sorted(names)}


def _reading(found: Found, stand: _Stand) -> Reading:
    """What a scrape would show, without a hook."""
    measures = found.prepared.measures
    return Reading(
        node="",
        info={},
        schedulers=found.target.schedulers,
        process=read_process(found.target.pid),
        events={},
        counters=measures.read(),
        limits=measures.limits,
        budget=0.0,
        overhead=0.0,
        hook_seconds=0.0,
        trips=0,
        windows=0,
        lost=0,
        refused_kernel=0,
        refused_user=0,
        memory=stand.memory,
        snapshot=stand.snapshot,
    )
