# SPDX-License-Identifier: Apache-2.0
"""
The plan of a target: what is attached to it, what is not, and why, as plain data.

``planning`` makes it from the target's binary; its users need no knowledge of the BEAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from scope_ebpf import events

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scope_ebpf.beam.elf import usdt

Via = Literal["auto", "usdt", "symbol"]

#: In the order in which they are shown.
EVENTS = tuple(events.KINDS)
#: The events of a trace by default: all whose hooks are cheap enough for ten seconds.
DEFAULT_EVENTS = tuple(
    event for event in EVENTS if not any(v.on_request for v in events.VARIANTS if v.event == event)
)


class Attachment(NamedTuple):
    """
    One breakpoint in the file of the target, or one tracepoint of the kernel, and its program.

    Offset and address of a tracepoint are 0.
    """

    #: The BPF program.
    program: str
    #: The probe family, whose object has the program.
    family: str
    #: The function, USDT probe or tracepoint.
    name: str
    #: Offset in the file, bytes.
    offset: int
    #: ELF address at that offset, which identifies a USDT site.
    address: int
    #: Whether the program runs at the return of the function.
    returns: bool = False
    #: Settings of the program that hold the registers of its arguments, and the register of each.
    registers: tuple[tuple[str, str], ...] = ()
    #: Offset of the USDT semaphore in the file, bytes; 0 where there is none.
    semaphore: int = 0
    #: Locations of the arguments of a USDT site.
    arguments: tuple[usdt.Argument, ...] = ()
    tracepoint: bool = False
    #: Where the address comes from, if the program hides the function; "" for its own symbol.
    source: str = ""


class Item(NamedTuple):
    """The plan for one event."""

    event: str
    #: The kind of its hooks.
    via: Literal["symbol", "usdt", "tracepoint", "unavailable"]
    #: Names of its hooks, joined by " + "; empty if it is unavailable.
    hook: str
    attachments: tuple[Attachment, ...]
    #: Why it is unavailable, or why the kinds of hook that are preferred are; may be empty.
    reason: str


class Plan(NamedTuple):
    """The plan of a target: ``items`` has one for each wanted event, in order."""

    items: tuple[Item, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """All attachments of the plan."""
        return tuple(a for item in self.items for a in item.attachments)

    @property
    def kinds(self) -> tuple[events.Kind, ...]:
        """The kinds of event that are available."""
        return tuple(events.KINDS[item.event] for item in self.items if item.attachments)

    def governable(self) -> Plan:
        """The same plan without tracepoints, whose programs cannot be kept within a budget."""
        return Plan(tuple(_governable(item) for item in self.items))

    def leave_out(self, events: Collection[str]) -> Plan:
        """The same plan without those of *events* that are unavailable."""
        return Plan(tuple(i for i in self.items if i.attachments or i.event not in events))

    def without(self, failures: Mapping[Attachment, str]) -> Plan:
        """The same plan without events of which a hook failed; *failures* have the reasons."""
        return Plan(tuple(_without(item, failures) for item in self.items))

    def refuse(self, reasons: Mapping[str, str]) -> Plan:
        """The same plan without the events of which *reasons* say why they may not be used."""
        return Plan(
            tuple(
                Item(item.event, "unavailable", "", (), reasons[item.event])
                if item.event in reasons
                else item
                for item in self.items
            )
        )


def _governable(item: Item) -> Item:
    """A tracepoint's programs run for all processes of the host, not only for the target."""
    if item.via != "tracepoint":
        return item
    reason = "it is counted at every switch of the host's CPUs, not within a budget: --exact does"
    return Item(item.event, "unavailable", "", (), reason)


def _without(item: Item, failures: Mapping[Attachment, str]) -> Item:
    """An event of which a hook is missing would be counted wrong, so it becomes unavailable."""
    failed = {a.name: failures[a] for a in item.attachments if a in failures}
    if not failed:
        return item
    reason = "; ".join(f"{name} could not be attached ({why})" for name, why in failed.items())
    return Item(item.event, "unavailable", "", (), reason)
