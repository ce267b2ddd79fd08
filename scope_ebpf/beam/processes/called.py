# SPDX-License-Identifier: Apache-2.0
"""Names of long calls: the Erlang code that they came from, and the C function."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.natives import Natives
from scope_ebpf.beam.stacks.native import NativeCode
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.code.tables import CodeMap
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Seconds between two readings of what code is loaded, where an address is in none that is known.
_AGAIN = 1.0
#: ErtsCodeMFA: two atoms and a number.
_MFA = 24


class CalledNames:
    """Names addresses of one VM; *clock* is in seconds. None for an address without a name."""

    def __init__(
        self,
        target: Target,
        atoms: Atoms,
        code: CodeMap,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._code = code
        self._native = NativeCode(target, Natives(target, atoms))
        self._clock = clock
        self._looked = clock()

    def function(self, address: int) -> str | None:
        """``M:F/A`` of Erlang code."""
        if not address:
            return None
        try:
            if self._clock() - self._looked > _AGAIN:
                self._looked = self._clock()
                self._refresh()
            found = self._code.function(address)
            # A call that waits for a dirty scheduler has its own stub, with its name before it.
            found = found or self._code.mfa(address - _MFA)
        except ScopeError:
            return None
        return str(found) if found else None

    def _refresh(self) -> None:
        before = self._code.generation
        self._code.refresh()
        self._native.refresh()
        if self._code.generation != before:
            self._native.forget_names()

    def symbol(self, address: int) -> str | None:
        """The C function as ``NativeCode`` names it."""
        if not address:
            return None
        try:
            name = self._native.name(address)
        except ReadRefusedError:
            return None
        return name.name if name.file else None
