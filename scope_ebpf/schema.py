# SPDX-License-Identifier: Apache-2.0
"""What ``events.py``, which is generated from ``probes/events.toml``, consists of."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(NamedTuple):
    """One kind of event: its number, its classes, and how they make up its count."""

    id: int
    name: str
    doc: str
    classes: tuple[str, ...] = ("all",)
    #: The class whose count is the count of the event; None: the sum of all classes.
    counted: str | None = None
    #: The class whose durations have a histogram, or "all"; None: there is no histogram.
    histogram: str | None = None
    #: The unit of each field of its own that has one: ns, words, eterm, loss, address, reductions.
    units: Mapping[str, str] = MappingProxyType({})
    #: The value of each field of its own that means "unknown".
    absent: Mapping[str, int] = MappingProxyType({})


class Hook(NamedTuple):
    """A function, USDT probe or tracepoint, and the BPF program that is attached to it."""

    program: str
    name: str
    #: The program is attached to the return of the function.
    returns: bool = False
    #: *name* is a C++ name; it is matched mangled.
    mangled: bool = False
    #: The variant works without this hook.
    optional: bool = False
    #: Attach to the instruction that calls this function, instead of the entry.
    call: str | None = None
    #: The called function is static: in a stripped file it is the only callee without a name.
    local: bool = False
    #: A function that calls this one in every release: where it does not, the compiler has made
    #: copies, whose calls would be missed.
    called_by: str | None = None
    #: Functions that only this one calls: if they show that its one copy is in *called_by*, it is
    #: used with the hook that is its ``copy_of``.
    marks: tuple[str, ...] = ()
    #: A function that has its own hook: this one is used only where it has a copy of that.
    copy_of: str | None = None
    #: Settings without which it cannot work: then neither can a variant that has a use for it.
    needs: tuple[str, ...] = ()
    #: Settings, each with the register that it is set to at that call.
    at_call: tuple[tuple[str, str], ...] = ()
    #: Settings that are set to the registers of the function's arguments.
    arguments: tuple[str, ...] = ()


class Variant(NamedTuple):
    """One attach method for an event: by function symbols, USDT probes or tracepoints."""

    event: str
    #: "symbol", "usdt" or "tracepoint".
    via: str
    #: The BPF object, ``probes/FAMILY.bpf.c``.
    family: str
    hooks: tuple[Hook, ...]
    #: "jit" or "emu"; None: both flavors of the emulator.
    flavor: str | None = None
    #: Why it is attached only on request; None: by default.
    on_request: str | None = None
    #: Settings without which it cannot work.
    needs: tuple[str, ...] = ()


class Unavailable(NamedTuple):
    """Why a variant that a target seems to have is not used."""

    event: str
    via: str
    reason: str
    flavor: str | None = None
