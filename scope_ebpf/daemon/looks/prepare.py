# SPDX-License-Identifier: Apache-2.0
"""
All that must be read of a target's files and memory before it can be observed.

It takes tens of milliseconds of a VM, and of a process that only looks like one as long as it
may; so it is done outside of the loop.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.proof import has_atoms
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.budget.reference_counters import Measures
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.sessions import Planned, plan_target

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target


class UnprovenError(ReadRefusedError):
    """A process looks like a VM, and nothing in its memory says that it is one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    What a watch is made of.
    """

    measures: Measures
    #: What will be attached.
    planned: Planned
    #: What could not be found out, and why.
    notes: tuple[str, ...]


def prepare(target: Target) -> Prepared:
    """
    Find out what is needed to observe *target*.

    Raises UnprovenError where its memory is not that of a VM: then it gets no hooks.
    NothingToAttachError and NoSuchProcessError are of others.
    """
    measures = Measures(target)
    if measures.refused and NodeName(target).read() is None and not has_atoms(target):
        raise UnprovenError(
            f"process {target.pid} looks like OTP {target.otp_release}, but its memory is not that "
            f"of a VM, or not yet; so no hook goes into it. {measures.refused}"
        )
    planned = plan_target(target, DEFAULT_EVENTS)
    if not planned.plan.attachments:
        raise NothingToAttachError(f"process {target.pid} has no hook that can be attached")
    notes = (*([measures.refused] if measures.refused else []), *planned.notes)
    with suppress(ReadRefusedError):
        SchedulerFinder(target)  # so that what has to be searched for is found by now
    return Prepared(measures, planned, notes)
