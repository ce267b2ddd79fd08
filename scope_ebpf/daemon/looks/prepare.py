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
from weakref import WeakKeyDictionary

from scope_ebpf.attach.plan import DEFAULT_EVENTS, Plan
from scope_ebpf.beam.vm.constants import kernel_constants, known, symbol_values
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.proof import has_atoms
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.budget.reference_counters import Measures
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.vm.target import Target

#: Plans by program, and within it by the settings that were found out.
_plans: WeakKeyDictionary[Binary, dict[tuple[str, ...], Plan]] = WeakKeyDictionary()


class UnprovenError(ReadRefusedError):
    """A process looks like a VM, and nothing in its memory says that it is one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    What a watch is made of.

    *settings* is one ``events.SETTINGS``, *notes* say what could not be found out, *addresses*
    are of the symbols that the plan's arguments name.
    """

    measures: Measures
    settings: NDArray[np.void]
    notes: tuple[str, ...]
    plan: Plan
    addresses: dict[str, int]


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
    settings, refused = kernel_constants(target)
    plan = _plan_for(target, known(settings))
    if not plan.attachments:
        raise NothingToAttachError(f"process {target.pid} has no hook that can be attached")
    names = {g.symbol for a in plan.attachments for g in a.arguments if g.symbol}
    notes = (*([measures.refused] if measures.refused else []), *refused)
    with suppress(ReadRefusedError):
        SchedulerFinder(target)  # so that what has to be searched for is found by now
    return Prepared(measures, settings, notes, plan, symbol_values(target, names))


def _plan_for(target: Target, settings: list[str]) -> Plan:
    """What is attached to *target*, where *settings* are known: one plan for all VMs of a build."""
    plans, key = _plans.setdefault(target.binary, {}), (target.flavor, *settings)
    if key not in plans:
        plans[key] = make_plan(target.binary, target.flavor, DEFAULT_EVENTS, "auto", settings)
    return plans[key]
