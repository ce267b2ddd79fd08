# SPDX-License-Identifier: Apache-2.0
"""
Reads everything from a target's files and memory that is needed before it can be observed.

This takes tens of milliseconds for a VM, and as long as permitted for a process that only looks
like one. Therefore it is done outside of the loop.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.hidden.resolve import hides, resolve
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.proof import has_atoms
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.sessions import Planned, plan_target

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target


class UnprovenError(ReadRefusedError):
    """A process looks like a VM, but nothing in its memory proves that it is one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    The parts from which the hooks of one target are made.

    Attributes:
        counters: the VM's own counters.
        planned: what will be attached.
    """

    counters: ReferenceCounters
    planned: Planned


def prepare(target: Target, owner: str = "") -> Prepared:
    """
    Read what is needed to observe *target*, a process of *owner*.

    Raises UnprovenError where its memory is not that of a VM, so that it gets no hooks,
    NothingToAttachError, and NoSuchProcessError.
    """
    if hides(target.binary) and not has_atoms(target):
        raise UnprovenError(f"process {target.pid} has not the memory of a VM, or not yet")
    resolve(target, owner)  # a counter may be found by a function that the program hides
    counters = ReferenceCounters(target)
    if counters.refused and NodeName(target).read() is None and not has_atoms(target):
        raise UnprovenError(
            f"process {target.pid} looks like OTP {target.otp_release}, but its memory is not that "
            f"of a VM, or not yet; so no hook goes into it. {counters.refused}"
        )
    planned = plan_target(target, DEFAULT_EVENTS)
    if not planned.plan.attachments:
        raise NothingToAttachError(f"process {target.pid} has no hook that can be attached")
    with suppress(ReadRefusedError):
        SchedulerFinder(target)  # so that what has to be searched for is found by now
    return Prepared(counters, planned)
