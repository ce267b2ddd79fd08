# SPDX-License-Identifier: Apache-2.0
"""
Addresses of the VM's global tables in its memory.

A symbol gives the address, where there is one. What is static, or hidden as OTP 29 hides
it, is searched for: by the instructions of exported functions that use it, or by
its shape among the VM's variables. A result is used only if it points to itself
as the table does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.beam.memory.search import SEARCHES
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

#: Seconds, at least, after which a failed search is repeated.
_AGAIN = 30.0
#: Names so short that a symbol of that name may be anything.
_AMBIGUOUS = ("r",)
#: Addresses of a hostile file wrap to 64 bits.
_WORD = (1 << 64) - 1


class Roots:
    """Addresses of globals in one running VM, by their names in the VM's source."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._found: dict[str, int] = {}
        #: Time of the first failed search, and of the next: the VM may just be starting.
        self._missing: dict[str, tuple[float, float]] = {}

    def find(self, name: str) -> int | None:
        """Find a global, or None; failed searches are repeated, more and more rarely."""
        if name in self._found:
            return self._found[name]
        symbol = None if name in _AMBIGUOUS else self._target.binary.symbol(name)
        if symbol is not None:
            return self._found.setdefault(name, self._target.base + symbol.address & _WORD)
        now = time.monotonic()
        first, due = self._missing.get(name, (now, now))
        if now < due:
            return None
        found = SEARCHES[name](self._target) if name in SEARCHES else None
        if found is not None:
            return self._found.setdefault(name, found)
        self._missing[name] = first, now + max(_AGAIN, now - first)
        return None

    def address(self, name: str) -> int:
        """Find a global; ReadRefusedError with the reason if it is not found."""
        address = self.find(name)
        if address is None:
            target = self._target
            raise ReadRefusedError(
                f"process {target.pid} hides {name}: its emulator (OTP {target.otp_release}) has "
                "no symbol for it, and its memory does not show it. Debug symbols of the same "
                "build would show it"
            )
        return address
