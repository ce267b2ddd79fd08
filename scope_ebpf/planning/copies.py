# SPDX-License-Identifier: Apache-2.0
"""
Functions of which the compiler has made copies: hooks of the function miss the copies' calls.

OTP's default, -O3, puts ``set_busy_port`` into ``erts_deliver_port_exit``, which calls it as a
port closes. Drivers are compiled apart and call the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scope_ebpf.beam.elf import bounds

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scope_ebpf import events
    from scope_ebpf.beam.elf.contents import Symbol


class Callers(bounds.File, Protocol):
    """A binary of which is asked who calls a function."""

    def symbol(self, name: str) -> Symbol | None:
        """The function of that name."""

    def calls(self, address: int, size: int) -> Collection[tuple[int, int, bool]]:
        """Each call in a function: address, target, and whether a symbol or the PLT spans it."""

    def callers(self, functions: Sequence[int]) -> list[list[int]]:
        """For each of *functions*, by its address, where direct branches lead to it."""


def calls(binary: Callers, caller: Symbol, name: str) -> bool:
    """Whether *caller* calls the function of that name; False if there is none."""
    called = binary.symbol(name)
    targets = {target for _, target, _ in binary.calls(caller.address, caller.size)}
    return called is not None and called.address in targets


def require_all_calls(binary: Callers, symbol: Symbol, hook: events.Hook) -> None:
    """
    Refuse *symbol*, the function of *hook*, if copies of it are called, and not all are known.

    Known is one copy in the function that calls it in the source: then no other function calls
    those by which a copy is recognized. Raises UnprovenPlaceError.
    """
    caller = binary.symbol(hook.called_by) if hook.called_by else None
    if (
        caller is None
        or calls(binary, caller, hook.name)
        or _one_copy(binary, symbol, caller, hook)
    ):
        return
    raise bounds.UnprovenPlaceError(
        f"{caller.name} does not call it in this build, whose compiler has made copies of it"
    )


def _one_copy(binary: Callers, symbol: Symbol, caller: Symbol, hook: events.Hook) -> bool:
    marks = [mark for name in hook.marks if (mark := binary.symbol(name))]
    if not marks or len(marks) < len(hook.marks):
        return False
    sites = binary.callers([mark.address for mark in marks])
    copied = False
    for found in sites:
        own = [site for site in found if 0 <= site - symbol.address < symbol.size]
        others = [site for site in found if 0 <= site - caller.address < caller.size]
        if not own or len(own) + len(others) < len(found):
            return False
        copied = copied or bool(others)
    return copied
