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
from weakref import WeakKeyDictionary

from scope_ebpf.attach.plan import DEFAULT_EVENTS, Plan
from scope_ebpf.beam.vm.constants import kernel_constants, known, symbol_values
from scope_ebpf.beam.vm.node import NodeName
from scope_ebpf.beam.vm.proof import has_atoms
from scope_ebpf.beam.vm.scheduler_addresses import SchedulerFinder
from scope_ebpf.budget.reference_counters import ReferenceCounters
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.vm.target import Target

#: Plans by program, then by the settings that are known.
_plans: WeakKeyDictionary[Binary, dict[tuple[str, ...], Plan]] = WeakKeyDictionary()


class UnprovenError(ReadRefusedError):
    """A process looks like a VM, but nothing in its memory proves that it is one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    The parts from which the hooks of one target are made.

    Attributes:
        counters: the VM's own counters.
        settings: one ``events.SETTINGS``.
        plan: what is attached for each event.
        addresses: addresses of the symbols that arguments in the plan name.
    """

    counters: ReferenceCounters
    settings: NDArray[np.void]
    plan: Plan
    addresses: dict[str, int]


def prepare(target: Target) -> Prepared:
    """
    Read what is needed to observe *target*.

    Raises UnprovenError where its memory is not that of a VM, so that it gets no hooks,
    NothingToAttachError, and NoSuchProcessError.
    """
    counters = ReferenceCounters(target)
    if counters.refused and NodeName(target).read() is None and not has_atoms(target):
        raise UnprovenError(
            f"process {target.pid} looks like OTP {target.otp_release}, but its memory is not that "
            f"of a VM, or not yet; so no hook goes into it. {counters.refused}"
        )
    settings, _ = kernel_constants(target)
    plan = _plan_for(target, known(settings))
    if not plan.attachments:
        raise NothingToAttachError(f"process {target.pid} has no hook that can be attached")
    names = {g.symbol for a in plan.attachments for g in a.arguments if g.symbol}
    with suppress(ReadRefusedError):
        SchedulerFinder(target)  # searches now for what is not in the symbol table
    return Prepared(counters, settings, plan, symbol_values(target, names))


def _plan_for(target: Target, settings: list[str]) -> Plan:
    """The plan for *target*, whose *settings* are known; all VMs of a build share it."""
    plans, key = _plans.setdefault(target.binary, {}), (target.flavor, *settings)
    if key not in plans:
        plans[key] = make_plan(target.binary, target.flavor, DEFAULT_EVENTS, "auto", settings)
    return plans[key]
