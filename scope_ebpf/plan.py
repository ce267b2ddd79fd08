# SPDX-License-Identifier: Apache-2.0
"""
What will be attached to a target, what will not, and why.

Pure: a binary's symbols and notes and what is asked for go in, plain data comes
out. Nothing is attached that is not in ``events.WAYS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from scope_ebpf import events
from scope_ebpf.beam import entry, usdt

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Via = Literal["auto", "usdt", "symbol"]

#: In the order in which they are shown.
EVENTS = tuple(events.KINDS)
#: What a trace looks at unless it is told: everything whose hooks are cheap enough for ten seconds.
DEFAULT_EVENTS = tuple(
    event for event in EVENTS if not any(w.on_request for w in events.WAYS if w.event == event)
)


#: In the order in which they are tried. The kernel's tracepoints are there whatever the VM is.
_HOW: tuple[Literal["tracepoint", "symbol", "usdt"], ...] = ("tracepoint", "symbol", "usdt")
_BY_TRACEPOINT = {way.event for way in events.WAYS if way.via == "tracepoint"}


class _Symbol(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...


class _Site(Protocol):
    @property
    def provider(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def semaphore(self) -> int: ...
    @property
    def arguments(self) -> str: ...


class Executable(Protocol):
    """What the plan needs to know of a binary; ``beam.binary.Binary`` is one."""

    def symbol(self, name: str) -> _Symbol | None:
        """The function of that name."""

    def matching(self, pattern: re.Pattern[str]) -> Iterable[_Symbol]:
        """The functions whose whole name matches."""

    def function_at(self, address: int) -> _Symbol | None:
        """The function around an address."""

    def file_offset(self, address: int) -> int:
        """Where an address lies in the file."""

    def read(self, address: int, size: int) -> bytes:
        """What the file holds at an address."""

    @property
    def usdt_sites(self) -> Collection[_Site]:
        """The USDT sites of the binary."""


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

    def without(self, failures: Mapping[Attachment, str]) -> Plan:
        """The same plan once some hooks could not be attached, with the reason of each."""
        return Plan(tuple(_without(item, failures) for item in self.items))


def _without(item: Item, failures: Mapping[Attachment, str]) -> Item:
    """An event of which a hook is missing would count wrong, so it is not counted at all."""
    failed = {a.name: failures[a] for a in item.attachments if a in failures}
    if not failed:
        return item
    reason = "; ".join(f"{name} could not be attached ({why})" for name, why in failed.items())
    return Item(item.event, "unavailable", "", (), reason)


def make_plan(
    binary: Executable,
    flavor: str,
    wanted: Collection[str] = DEFAULT_EVENTS,
    via: Via = "auto",
    settings: Collection[str] = (),
) -> Plan:
    """
    How each *wanted* event is seen on *binary*, an emulator of *flavor*.

    *settings* names the settings that are known for the target; a way that needs
    another one is not taken.
    """
    items = [_item(binary, flavor, event, via, settings) for event in EVENTS if event in wanted]
    return Plan(tuple(items))


def _item(binary: Executable, flavor: str, event: str, via: Via, settings: Collection[str]) -> Item:
    reasons: list[str] = []
    for way in _HOW:
        if way == "tracepoint" and event not in _BY_TRACEPOINT:
            continue
        if via not in ("auto", way) and way != "tracepoint":
            continue
        found, reason = _way(binary, flavor, event, way, settings)
        if found:
            hook = " + ".join(dict.fromkeys(a.name for a in found))
            return Item(event, way, hook, found, "; ".join(reasons))
        reasons.append(reason)
    return Item(event, "unavailable", "", (), "; ".join(reasons))


def _way(
    binary: Executable, flavor: str, event: str, via: str, settings: Collection[str]
) -> tuple[tuple[Attachment, ...], str]:
    """The attachments of one way, or why there are none."""
    for refusal in events.REFUSALS:
        if (refusal.event, refusal.via) == (event, via) and refusal.flavor in (None, flavor):
            return (), refusal.reason
    for way in events.WAYS:
        if (way.event, way.via) != (event, via) or way.flavor not in (None, flavor):
            continue
        missing = [name for name in way.needs if name not in settings]
        if missing:
            return (), f"{', '.join(missing)} could not be found in the target"
        return _attachments(binary, way)
    return (), f"there is no {via} hook for it"


def _attachments(binary: Executable, way: events.Way) -> tuple[tuple[Attachment, ...], str]:
    if way.via == "tracepoint":
        hooks = (
            Attachment(h.program, way.family, h.name, 0, 0, tracepoint=True) for h in way.hooks
        )
        return tuple(hooks), ""
    found: list[Attachment] = []
    for hook in way.hooks:
        try:
            places = (
                symbol_places(binary, way, hook)
                if way.via == "symbol"
                else usdt_places(binary, way, hook)
            )
        except usdt.ArgumentError as error:
            return (), f"{hook.name}: {error}"
        if not places and not hook.optional:
            kind = "function symbol" if way.via == "symbol" else "USDT probe"
            return (), f"the binary has no {kind} {hook.name}"
        found += places
    return tuple(found), ""


def symbol_places(binary: Executable, way: events.Way, hook: events.Hook) -> list[Attachment]:
    """Where a hook goes that is a function: one place, or none."""
    symbol = binary.symbol(hook.name)
    if symbol is None and hook.mangled:
        # A C++ function: _Z, the length of the name, the name, the types of the arguments.
        pattern = re.compile(rf"_Z{len(hook.name)}{hook.name}[A-Z].*")
        symbol = next(iter(binary.matching(pattern)), None)
    if symbol is None:
        return []
    if hook.call and (at_call := _call(binary, symbol, hook)):
        offset = binary.file_offset(at_call)
        return [
            Attachment(hook.program, way.family, hook.name, offset, at_call, registers=hook.at_call)
        ]
    place = entry.START if hook.returns else _entry(binary, symbol, hook)
    address = symbol.address + place.shift
    registers = tuple(zip(hook.arguments, (r or "" for r in place.registers), strict=False))
    offset = binary.file_offset(address)
    return [
        Attachment(hook.program, way.family, hook.name, offset, address, hook.returns, registers)
    ]


def _call(binary: Executable, symbol: _Symbol, hook: events.Hook) -> int | None:
    """The address of the one place where a function calls *hook.call*, if there is one."""
    called = binary.symbol(hook.call or "")
    calls = entry.calls(binary.read(symbol.address, symbol.size), symbol.address)
    if called is not None:
        places = [place for place, target in calls if target == called.address]
    elif hook.local:
        places = [place for place, target in calls if binary.function_at(target) is None]
    else:
        return None
    return places[0] if len(places) == 1 else None


def _entry(binary: Executable, symbol: _Symbol, hook: events.Hook) -> entry.Entry:
    """Where to see the call: elsewhere than at its start only if the program can follow."""
    place = entry.cheap_entry(binary.read(symbol.address, symbol.size))
    if hook.arguments:
        usable = all(place.registers[: len(hook.arguments)])
    else:
        usable = place.registers == entry.ARGUMENTS
    return place if usable else entry.START


def usdt_places(binary: Executable, way: events.Way, hook: events.Hook) -> list[Attachment]:
    """Where a hook goes that is a USDT probe: each of its sites; ArgumentError for odd ones."""
    return [
        Attachment(
            hook.program,
            way.family,
            hook.name,
            binary.file_offset(site.address),
            site.address,
            semaphore=binary.file_offset(site.semaphore) if site.semaphore else 0,
            arguments=usdt.parse(site.arguments),
        )
        for site in binary.usdt_sites
        if site.provider == "erlang" and site.name == hook.name
    ]
