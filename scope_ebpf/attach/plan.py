# SPDX-License-Identifier: Apache-2.0
"""
What will be attached to a target, what will not, and why: as plain data.

``planning`` makes it; nobody else needs to know the BEAM for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.elf import usdt

Via = Literal["auto", "usdt", "symbol"]

#: In the order in which they are shown.
EVENTS = tuple(events.KINDS)
#: What a trace looks at unless it is told: everything whose hooks are cheap enough for ten seconds.
DEFAULT_EVENTS = tuple(
    event for event in EVENTS if not any(w.on_request for w in events.VARIANTS if w.event == event)
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One breakpoint: a program at a place of the file. A tracepoint has no place."""

    program: str
    family: str
    name: str
    #: Offset in the file, bytes.
    offset: int
    #: The same place as an ELF address, by which a USDT site is told from the others.
    address: int
    returns: bool = False
    #: Settings that tell the program where its arguments are, and the register of each.
    registers: tuple[tuple[str, str], ...] = ()
    #: Offset of the USDT semaphore in the file, bytes; 0 where there is none.
    semaphore: int = 0
    arguments: tuple[usdt.Argument, ...] = ()
    tracepoint: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes of one event."""

    event: str
    via: Literal["symbol", "usdt", "tracepoint", "unavailable"]
    hook: str
    attachments: tuple[Attachment, ...]
    #: Why it is unavailable, or why not the other way; empty where nothing is to be said.
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One item for each event that was asked for, in order."""

    items: tuple[Item, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Every breakpoint of the plan."""
        return tuple(a for item in self.items for a in item.attachments)

    @property
    def kinds(self) -> tuple[events.Kind, ...]:
        """The kinds of event that will be seen."""
        return tuple(events.KINDS[item.event] for item in self.items if item.attachments)

    def governable(self) -> Plan:
        """The same plan without what keeps no budget: the kernel's own events, at every switch."""
        return Plan(tuple(_governable(item) for item in self.items))

    def without(self, failures: Mapping[Attachment, str]) -> Plan:
        """The same plan once some hooks could not be attached, with the reason of each."""
        return Plan(tuple(_without(item, failures) for item in self.items))


def _governable(item: Item) -> Item:
    """The scheduler of the host runs the programs of a tracepoint for everybody, so they stay."""
    if item.via != "tracepoint":
        return item
    reason = "it is counted at every switch of the host's CPUs, not within a budget: --exact does"
    return Item(item.event, "unavailable", "", (), reason)


def _without(item: Item, failures: Mapping[Attachment, str]) -> Item:
    """An event of which a hook is missing would count wrong, so it is not counted at all."""
    failed = {a.name: failures[a] for a in item.attachments if a in failures}
    if not failed:
        return item
    reason = "; ".join(f"{name} could not be attached ({why})" for name, why in failed.items())
    return Item(item.event, "unavailable", "", (), reason)
