# SPDX-License-Identifier: Apache-2.0
"""
The planner: which hooks each wanted event has in a target's binary, and where.

Pure: it makes a plan from a binary's symbols and notes and the wanted events. The plan has only
hooks of ``events.VARIANTS``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, Protocol

from scope_ebpf import events
from scope_ebpf.attach.plan import DEFAULT_EVENTS, EVENTS, Attachment, Item, Plan
from scope_ebpf.beam.elf import bounds, entry, usdt
from scope_ebpf.beam.elf.binary import foresee
from scope_ebpf.beam.elf.contents import UnreadableElfError
from scope_ebpf.planning import copies

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from scope_ebpf.attach.plan import Via
    from scope_ebpf.beam.elf.contents import Symbol

#: Kinds of hook in the order in which they are tried. Tracepoints do not depend on the VM.
_VIAS: tuple[Literal["tracepoint", "symbol", "usdt"], ...] = ("tracepoint", "symbol", "usdt")
#: A function of a build with -fcf-protection begins so. A breakpoint there takes a second trap.
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_HOOKS = [hook for variant in events.VARIANTS if variant.via == "symbol" for hook in variant.hooks]
_BY_TRACEPOINT = {v.event for v in events.VARIANTS if v.via == "tracepoint"}


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


class Executable(copies.Callers, Protocol):
    """A binary as the planner reads it; ``beam.elf.binary.Binary`` is one."""

    def matching(self, pattern: re.Pattern[str]) -> Iterable[Symbol]:
        """The functions whose whole name matches."""

    def file_offset(self, address: int) -> int:
        """The offset of an address in the file, bytes; UnreadableElfError if it is not in it."""

    def cheap_entry(self, address: int, size: int) -> entry.Entry:
        """The instruction of a function at which a hit is cheapest; UnreadableElfError as above."""

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
    The plan of each *wanted* event for *binary*, an emulator of *flavor*.

    *via* limits the kinds of hook. *settings* are the names of the settings that are known for the
    target; an attach variant that needs another one is not used.
    """
    items = [_item(binary, flavor, event, via, settings) for event in EVENTS if event in wanted]
    return Plan(tuple(items))


def _item(binary: Executable, flavor: str, event: str, via: Via, settings: Collection[str]) -> Item:
    reasons: list[str] = []
    for kind in _VIAS:
        if kind == "tracepoint" and event not in _BY_TRACEPOINT:
            continue
        if via not in ("auto", kind) and kind != "tracepoint":
            continue
        found, reason = _variant(binary, flavor, event, kind, settings)
        if found:
            hook = " + ".join(dict.fromkeys(a.name for a in found))
            return Item(event, kind, hook, found, "; ".join(reasons))
        reasons.append(reason)
    return Item(event, "unavailable", "", (), "; ".join(reasons))


def _variant(
    binary: Executable, flavor: str, event: str, via: str, settings: Collection[str]
) -> tuple[tuple[Attachment, ...], str]:
    """The attachments of the first variant that fits, or the reason why there are none."""
    for refusal in events.UNAVAILABLE:
        if (refusal.event, refusal.via) == (event, via) and refusal.flavor in (None, flavor):
            return (), refusal.reason
    for variant in events.VARIANTS:
        if (variant.event, variant.via) != (event, via) or variant.flavor not in (None, flavor):
            continue
        found, reason = _attachments(binary, variant)
        programs = {attachment.program for attachment in found}
        of_hooks = [name for h in variant.hooks if h.program in programs for name in h.needs]
        missing = [name for name in (*variant.needs, *of_hooks) if name not in settings]
        if missing:
            return (), f"{', '.join(missing)} could not be found in the target"
        return found, reason
    return (), f"there is no {via} hook for it"


def _attachments(binary: Executable, variant: events.Variant) -> tuple[tuple[Attachment, ...], str]:
    family = variant.family
    if variant.via == "tracepoint":
        hooks = (
            Attachment(h.program, family, h.name, 0, 0, tracepoint=True) for h in variant.hooks
        )
        return tuple(hooks), ""
    found: list[Attachment] = []
    by_symbol = variant.via == "symbol"
    for hook in variant.hooks:
        try:
            attachments = (symbol_attachments if by_symbol else usdt_attachments)(
                binary, variant, hook
            )
        except (usdt.ArgumentError, UnreadableElfError, bounds.UnprovenPlaceError) as error:
            return (), f"{hook.name}: {error}"
        if not attachments and not hook.optional:
            kind = "function symbol" if by_symbol else "USDT probe"
            return (), f"the binary has no {kind} {hook.name}"
        found += attachments
    return tuple(found), ""


def semaphores(binary: Executable) -> dict[int, int]:
    """The offset of the semaphore of each USDT site of OTP that has one, by that of the site."""
    return {
        binary.file_offset(site.address): binary.file_offset(site.semaphore)
        for site in binary.usdt_sites
        if site.provider == "erlang" and site.semaphore
    }


def symbol_attachments(
    binary: Executable, variant: events.Variant, hook: events.Hook
) -> list[Attachment]:
    """
    The attachment for a hook that is a function; none if the binary does not have it.

    UnprovenPlaceError if the file does not prove that its address is in that function.
    """
    symbol = binary.symbol(hook.name)
    if symbol is None and hook.mangled:
        # A C++ function: _Z, the length of the name, the name, the types of the arguments.
        pattern = re.compile(_mangled(hook.name))
        symbol = next(iter(binary.matching(pattern)), None)
    if symbol is None:
        return []
    bounds.require_in_function(binary, symbol, symbol.address)
    if hook.copy_of and copies.calls(binary, symbol, hook.copy_of):
        return []
    copies.require_all_calls(binary, symbol, hook)
    if hook.call and (at_call := _call(binary, symbol, hook)):
        bounds.require_in_function(binary, symbol, at_call)
        offset = binary.file_offset(at_call)
        return [
            Attachment(
                hook.program,
                variant.family,
                hook.name,
                offset,
                at_call,
                registers=hook.at_call,
                source=symbol.source,
            )
        ]
    start = (_returns_at if hook.returns else _entry)(binary, symbol, hook)
    address = symbol.address + start.shift
    bounds.require_in_function(binary, symbol, address)
    registers = tuple(zip(hook.arguments, (r or "" for r in start.registers), strict=False))
    offset = binary.file_offset(address)
    return [
        Attachment(
            hook.program,
            variant.family,
            hook.name,
            offset,
            address,
            hook.returns,
            registers,
            source=symbol.source,
        )
    ]


def _call(binary: Executable, symbol: Symbol, hook: events.Hook) -> int | None:
    """The address of the call of *hook.call* in a function; None if there is not exactly one."""
    called = binary.symbol(hook.call or "")
    calls = binary.calls(symbol.address, symbol.size)
    if called is not None:
        found = [address for address, target, _ in calls if target == called.address]
    elif hook.local and not symbol.source:  # where names are hidden, others have none as well
        found = [address for address, _, named in calls if not named]
    else:
        return None
    return found[0] if len(found) == 1 else None


def _entry(binary: Executable, symbol: Symbol, hook: events.Hook) -> entry.Entry:
    """The cheap entry if the program finds its arguments there, otherwise the function's start."""
    cheap = binary.cheap_entry(symbol.address, symbol.size)
    if hook.arguments:
        usable = all(cheap.registers[: len(hook.arguments)])
    else:
        usable = cheap.registers == entry.ARGUMENTS
    return cheap if usable else entry.START


def _returns_at(binary: Executable, symbol: Symbol, _hook: events.Hook) -> entry.Entry:
    """Behind an endbr64, which changes nothing, if that is cheap; otherwise the start."""
    cheap = binary.cheap_entry(symbol.address, symbol.size)
    if cheap.shift == len(_ENDBR64) and binary.read(symbol.address, len(_ENDBR64)) == _ENDBR64:
        return cheap
    return entry.START


def usdt_attachments(
    binary: Executable, variant: events.Variant, hook: events.Hook
) -> list[Attachment]:
    """
    The attachments for a hook that is a USDT probe, one for each of its sites.

    ArgumentError if the arguments of a site cannot be parsed, UnprovenPlaceError if the file does
    not prove that it is a site.
    """
    sites = [s for s in binary.usdt_sites if s.provider == "erlang" and s.name == hook.name]
    for site in sites:
        bounds.require_site(binary, site.address, site.semaphore)
    return [
        Attachment(
            hook.program,
            variant.family,
            hook.name,
            binary.file_offset(site.address),
            site.address,
            semaphore=binary.file_offset(site.semaphore) if site.semaphore else 0,
            arguments=usdt.parse(site.arguments),
        )
        for site in sites
    ]


def _mangled(name: str) -> str:
    """The pattern of a C++ function's symbol."""
    return rf"_Z{len(name)}{name}[A-Z].*"


foresee(
    (hook.name for hook in _HOOKS),
    (hook.call for hook in _HOOKS if hook.call),
    (_mangled(hook.name) for hook in _HOOKS if hook.mangled),
)
