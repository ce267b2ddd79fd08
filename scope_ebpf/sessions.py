# SPDX-License-Identifier: Apache-2.0
"""
A session on a target: the one place that joins what is known of a VM with what the kernel attaches.

:func:`plan_target` reads the VM and decides what will be attached, :func:`open_session` makes the
session, :func:`open_governed_session` one whose hooks come and go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from scope_ebpf.attach.plan import Plan
from scope_ebpf.beam.hidden.resolve import hidden_of, resolve
from scope_ebpf.beam.layouts import KNOWN
from scope_ebpf.beam.vm.constants import kernel_constants, known, symbol_values
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.kernel.observers.governed import GovernedSession
from scope_ebpf.kernel.observers.session import DEFAULT_RING_BYTES, Session
from scope_ebpf.planning.planner import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Item, Via
    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.hidden.resolve import Hidden
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.attach.uprobes import Attacher
    from scope_ebpf.kernel.observers.program_pool import ProgramPool

#: In a reason of the planner, the function that a program does not show.
_MISSING = re.compile(r"has no function symbol (\w+)")
#: Every release up to the last one that is described.
_UNTIL_NOW = frozenset(map(str, range(KNOWN[-1] + 1)))
#: Plans by program, and within it by flavour, attach method, events and known settings.
_plans: WeakKeyDictionary[Binary, dict[tuple[object, ...], Plan]] = WeakKeyDictionary()


class Planned(NamedTuple):
    """What will be attached to one target, and what the programs must know of it."""

    #: What will be attached for each event, and why the others are not available.
    plan: Plan
    #: One ``events.SETTINGS``; a setting that is not known is 0.
    settings: NDArray[np.void]
    #: One ``events.TARGET`` of which only the atoms are set; one that is not known is 0.
    atoms: NDArray[np.void] | None
    #: Why settings and atoms are not known, one text for each reading that failed.
    notes: tuple[str, ...]
    #: Addresses in the target's memory of the symbols that USDT arguments name.
    addresses: dict[str, int]


def plan_target(target: Target, wanted: tuple[str, ...], via: Via = "auto") -> Planned:
    """
    Read what the programs must know of *target*, and decide how the events *wanted* are seen.

    *via* is the attach method. Reasons for what is not available are in the plan; raises
    NoSuchProcessError.
    """
    hidden = resolve(target)
    settings, atoms, notes = kernel_constants(target)
    found = _plan(target, wanted, via, known(settings))
    if via != "usdt" and any(item.event.startswith("mark_") for item in found.items):
        from scope_ebpf.planning.marks import with_marks  # noqa: PLC0415 - few ask for them

        found = with_marks(target, found, settings)
    plan = within_reach(explained(found, hidden), target)
    return Planned(plan, settings, atoms, tuple(notes), addresses_of(target, plan))


def explained(plan: Plan, hidden: Hidden) -> Plan:
    """The same plan, whose reasons also say why functions that a program hides are not known."""

    def reason_of(item: Item) -> str:
        missing = _MISSING.search(item.reason)
        more = missing and (hidden.reasons.get(missing[1]) or hidden.why)
        return f"{item.reason} ({more})" if more else item.reason

    return Plan(tuple(i if i.attachments else i._replace(reason=reason_of(i)) for i in plan.items))


def within_reach(plan: Plan, target: Target) -> Plan:
    """
    The same plan; nothing of it for a release after all known ones, if its structs are others.

    What its functions take in which register may have changed with them.
    """
    if target.otp_release in _UNTIL_NOW:
        return plan
    try:
        _ = target.layout
    except ReadRefusedError:
        reason = "its release is not known here, and the layout of no other one passes the checks"
        return plan.refuse({item.event: reason for item in plan.items})
    return plan


def _plan(target: Target, wanted: tuple[str, ...], via: Via, settings: list[str]) -> Plan:
    """The plan for *target*: one for all VMs of a program of which the same settings are known."""
    plans = _plans.setdefault(target.binary, {})
    key = (hidden_of(target.binary).source, target.flavor, via, wanted, *settings)
    if key not in plans:
        plans[key] = make_plan(target.binary, target.flavor, wanted, via, settings)
    return plans[key]


def addresses_of(target: Target, plan: Plan) -> dict[str, int]:
    """Addresses in memory of the symbols that the USDT arguments of *plan* name."""
    names = {g.symbol for a in plan.attachments for g in a.arguments if g.symbol}
    return symbol_values(target, names)


def open_session(
    target: Target,
    planned: Planned,
    *,
    flavor: str = "jit",
    ring_bytes: int = DEFAULT_RING_BYTES,
    multi: bool | None = None,
    attaching: Callable[[], None] | None = None,
) -> Session:
    """A session of what is *planned* on *target*; see :class:`Session` for the rest."""
    return Session(
        planned.plan,
        target.identity,
        target.base,
        planned.settings,
        atoms=planned.atoms,
        addresses=planned.addresses,
        flavor=flavor,
        ring_bytes=ring_bytes,
        multi=multi,
        attaching=attaching,
    )


def open_governed_session(
    target: Target, planned: Planned, attacher: Attacher, pool: ProgramPool | None = None
) -> GovernedSession:
    """A session of what is *planned* on *target*, in which no hook is attached yet."""
    return GovernedSession(
        planned.plan,
        target.identity,
        target.base,
        planned.settings,
        attacher=attacher,
        pool=pool,
        atoms=planned.atoms,
        addresses=planned.addresses,
    )
