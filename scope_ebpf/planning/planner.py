# SPDX-License-Identifier: Apache-2.0
"""
How each event is seen on a target: which hooks its binary has, and where.

Pure: a binary's symbols and notes and what is asked for go in, a plan comes
out. Nothing is attached that is not in ``events.VARIANTS``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, Protocol

from scope_ebpf import events
from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS, Attachment, Item, Plan
from scope_ebpf.beam.elf import bounds, entry, usdt
from scope_ebpf.beam.elf.contents import UnreadableElfError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from scope_ebpf.attach.plan import Via
    from scope_ebpf.beam.elf.contents import Symbol

#: In the order in which they are tried. The kernel's tracepoints are there whatever the VM is.
_HOW: tuple[Literal["tracepoint", "symbol", "usdt"], ...] = ("tracepoint", "symbol", "usdt")
_BY_TRACEPOINT = {variant.event for variant in events.VARIANTS if variant.via == "tracepoint"}


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


class Executable(bounds.File, Protocol):
    """What the plan needs to know of a binary; ``beam.elf.binary.Binary`` is one."""

    def symbol(self, name: str) -> Symbol | None:
        """The function of that name."""

    def matching(self, pattern: re.Pattern[str]) -> Iterable[Symbol]:
        """The functions whose whole name matches."""

    def file_offset(self, address: int) -> int:
        """Where an address lies in the file; UnreadableElfError if it does not."""

    def cheap_entry(self, address: int, size: int) -> entry.Entry:
        """The cheapest place to see a call of a function; UnreadableElfError as above."""

    def calls(self, address: int, size: int) -> Collection[tuple[int, int, bool]]:
        """Where a function calls which address, and whether a symbol or the PLT spans that."""

    @property
    def usdt_sites(self) -> Collection[_Site]:
        """The USDT sites of the binary."""


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
    for refusal in events.UNAVAILABLE:
        if (refusal.event, refusal.via) == (event, via) and refusal.flavor in (None, flavor):
            return (), refusal.reason
    for way in events.VARIANTS:
        if (way.event, way.via) != (event, via) or way.flavor not in (None, flavor):
            continue
        missing = [name for name in way.needs if name not in settings]
        if missing:
            return (), f"{', '.join(missing)} could not be found in the target"
        return _attachments(binary, way)
    return (), f"there is no {via} hook for it"


def _attachments(binary: Executable, way: events.Variant) -> tuple[tuple[Attachment, ...], str]:
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
        except (usdt.ArgumentError, UnreadableElfError, bounds.UnprovenPlaceError) as error:
            return (), f"{hook.name}: {error}"
        if not places and not hook.optional:
            kind = "function symbol" if way.via == "symbol" else "USDT probe"
            return (), f"the binary has no {kind} {hook.name}"
        found += places
    return tuple(found), ""


def semaphores(binary: Executable) -> dict[int, int]:
    """The offset of the semaphore of each USDT site of OTP that has one, by the site's, bytes."""
    return {
        binary.file_offset(site.address): binary.file_offset(site.semaphore)
        for site in binary.usdt_sites
        if site.provider == "erlang" and site.semaphore
    }


def symbol_places(binary: Executable, way: events.Variant, hook: events.Hook) -> list[Attachment]:
    """
    Where a hook goes that is a function: one place, or none.

    UnprovenPlaceError where the file does not show that it is one.
    """
    symbol = binary.symbol(hook.name)
    if symbol is None and hook.mangled:
        # A C++ function: _Z, the length of the name, the name, the types of the arguments.
        pattern = re.compile(rf"_Z{len(hook.name)}{hook.name}[A-Z].*")
        symbol = next(iter(binary.matching(pattern)), None)
    if symbol is None:
        return []
    bounds.require_in_function(binary, symbol, symbol.address)
    if hook.call and (at_call := _call(binary, symbol, hook)):
        offset = binary.file_offset(at_call)
        return [
            Attachment(hook.program, way.family, hook.name, offset, at_call, registers=hook.at_call)
        ]
    place = entry.START if hook.returns else _entry(binary, symbol, hook)
    address = symbol.address + place.shift
    bounds.require_in_function(binary, symbol, address)
    registers = tuple(zip(hook.arguments, (r or "" for r in place.registers), strict=False))
    offset = binary.file_offset(address)
    return [
        Attachment(hook.program, way.family, hook.name, offset, address, hook.returns, registers)
    ]


def _call(binary: Executable, symbol: Symbol, hook: events.Hook) -> int | None:
    """The address of the one place where a function calls *hook.call*, if there is one."""
    called = binary.symbol(hook.call or "")
    calls = binary.calls(symbol.address, symbol.size)
    if called is not None:
        places = [place for place, target, _ in calls if target == called.address]
    elif hook.local:
        places = [place for place, _, named in calls if not named]
    else:
        return None
    return places[0] if len(places) == 1 else None


def _entry(binary: Executable, symbol: Symbol, hook: events.Hook) -> entry.Entry:
    """Where to see the call: elsewhere than at its start only if the program can follow."""
    place = binary.cheap_entry(symbol.address, symbol.size)
    if hook.arguments:
        usable = all(place.registers[: len(hook.arguments)])
    else:
        usable = place.registers == entry.ARGUMENTS
    return place if usable else entry.START


def usdt_places(binary: Executable, way: events.Variant, hook: events.Hook) -> list[Attachment]:
    """
    Where a hook goes that is a USDT probe: each of its sites.

    ArgumentError for odd ones, UnprovenPlaceError for those that are no sites.
    """
    sites = [s for s in binary.usdt_sites if s.provider == "erlang" and s.name == hook.name]
    for site in sites:
        bounds.require_site(binary, site.address, site.semaphore)
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
        for site in sites
    ]
