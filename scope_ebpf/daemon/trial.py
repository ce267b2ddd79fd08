# SPDX-License-Identifier: Apache-2.0
"""A trial of one VM: what the daemon could not observe of it. Attaches nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.daemon.config import Config
from scope_ebpf.daemon.looks.inspector import Looker
from scope_ebpf.daemon.looks.owners import ROOT, Owner, Shares
from scope_ebpf.daemon.notify import log
from scope_ebpf.daemon.readings.process import read_process
from scope_ebpf.daemon.readings.snapshots import SnapshotResults, Snapshots
from scope_ebpf.daemon.readings.threads import UNSEEN, unseen
from scope_ebpf.metrics.exposition import refused
from scope_ebpf.metrics.reading import HooksReading, Reading
from scope_ebpf.relations import checked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.looks.inspector import Found

#: Why one counter is not exported where the others are.
_NOT_FOUND = "it is not found in the VM's memory"
#: Parts that need attached hooks, which a trial does not have.
_ATTACHED = {"threads", "samples"}


@dataclass(frozen=True, slots=True)
class Trial:
    """
    What the daemon would not show of a VM.

    Attributes:
        whole: why it would not observe the VM at all; "" if it would.
        hooks: events that it would not observe, with the reason.
        parts: what ``scope_ebpf_refused`` would name, with the reason.
    """

    whole: str = ""
    hooks: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Subject:
    """A ``snapshots.Subject`` without hooks."""

    target: Target
    owner: Owner = ROOT
    results: SnapshotResults = field(default_factory=SnapshotResults)

    def publish(self, results: SnapshotResults) -> None:
        """Keep *results*."""
        self.results = results


def trial(pid: int) -> Trial:
    """Look at process *pid* as the daemon does, whether or not its config wants it."""
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
    """Suppress the daemon's log: the caller reports the same in another form."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _parts(found: Found) -> dict[str, str]:
    target, subject = found.target, _Subject(found.target)
    Snapshots(lambda: [subject], Config).look()
    memory = subject.results.memory
    reading, why = checked(_reading(found, subject.results))
    why |= memory.refused if memory else {}
    names = {*refused(reading), *why} - _ATTACHED
    if "counters" in names:
        why.setdefault("counters", found.prepared.counters.refused)
    if kinds := unseen(target):
        names.add("samples")
        why["samples"] = f"{', '.join(kinds)}: {UNSEEN}"
    return {name: why.get(name) or _NOT_FOUND for name in sorted(names)}


def _reading(found: Found, results: SnapshotResults) -> Reading:
    """What a scrape would show, without hooks."""
    counters = found.prepared.counters
    return Reading(
        node="",
        info={},
        schedulers=found.target.schedulers,
        process=read_process(found.target.pid),
        events={},
        counters=counters.read(),
        limits=counters.limits,
        hooks=HooksReading(),
        failed_reads=0,
        memory=results.memory,
        snapshot=results.snapshot,
    )
