# SPDX-License-Identifier: Apache-2.0
"""
Where the VM's global tables lie in its memory.

A symbol tells, where there is one. What is static, or hidden as OTP 29 hides
it, is looked for: by the instructions of exported functions that use it, or by
its shape among the VM's variables. What was looked for is believed only if it
points to itself in the way that the table does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.search import SEARCHES
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.target import Target

#: Names so short that a symbol of that name may be anything.
_AMBIGUOUS = ("r",)


class Roots:
    """Addresses of globals in one running VM, by their names in the VM's source."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._found: dict[str, int | None] = {}

    def find(self, name: str) -> int | None:
        """Find a global, or None."""
        if name not in self._found:
            symbol = None if name in _AMBIGUOUS else self._target.binary.symbol(name)
            if symbol is not None:
                self._found[name] = self._target.base + symbol.address
            else:
                search = SEARCHES.get(name)
                self._found[name] = search(self._target) if search else None
        return self._found[name]

    def address(self, name: str) -> int:
        """Find a global; ReadRefusedError with the reason where nothing tells its place."""
        address = self.find(name)
        if address is None:
            target = self._target
            raise ReadRefusedError(
                f"process {target.pid} hides {name}: its emulator (OTP {target.otp_release}) has "
                "no symbol for it, and its memory does not tell. Debug symbols of the same "
                "build would show it"
            )
        return address
