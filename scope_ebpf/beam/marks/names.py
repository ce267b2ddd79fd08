# SPDX-License-Identifier: Apache-2.0
"""Names of the functions of a VM that have markers, by the ids in these."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf.beam.marks.marked import MarkedCode
from scope_ebpf.errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Seconds between two readings of what code is loaded, where an id is of none that is known.
_AGAIN = 1.0


class MarkNames:
    """Names ids of one VM; *clock* is in seconds. Raises ReadRefusedError without its tables."""

    def __init__(
        self, target: Target, atoms: Atoms, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._code = MarkedCode(target, atoms)
        self._clock = clock
        self._next = 0.0

    def name(self, number: int) -> str | None:
        """``M:F/A``; None for an id that no function has, or that two functions share."""
        known = self._code.found
        if number not in known.functions and self._clock() >= self._next:
            with suppress(ScopeError):  # the VM may have ended
                self._code.refresh()
            self._next = self._clock() + _AGAIN
        function = known.functions.get(number)
        return str(function) if function and str(function) not in known.collided else None
