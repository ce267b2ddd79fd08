# SPDX-License-Identifier: Apache-2.0
"""The crashes that the programs have counted of one target, with the VM's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.metrics.crashes import CrashSums, CrashTotal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target


class Crashes:
    """
    The crashes of *target*; *counted* returns the rows of ``GovernedSession.crashes``.

    Names are read once: the VM never gives an atom another text.
    """

    def __init__(
        self, target: Target, counted: Callable[[], list[tuple[NDArray[np.void], int]]]
    ) -> None:
        self._target, self._counted = target, counted
        self._sums = CrashSums()
        self._texts: dict[int, str | None] = {}
        self._seen = 0
        self._last = self._sums.update(())

    def read(self) -> tuple[CrashTotal, ...]:
        """
        The totals now; those of the last call where names cannot be read.

        Raises NoSuchProcessError and TooMuchError: all that asks for them waits meanwhile, and the
        next reading would wait as long.
        """
        rows = self._counted()
        seen = sum(count for _, count in rows)
        if seen != self._seen and self._names([key for key, _ in rows]):
            self._seen = seen
            self._last = self._sums.update(
                (self._texts[int(key["module"])], self._texts[int(key["reason"])], count)
                for key, count in rows
            )
        return self._last

    def _names(self, keys: Sequence[NDArray[np.void]]) -> bool:
        """Read the names that are new; False if they cannot be read."""
        wanted = {int(key[field]) for key in keys for field in ("module", "reason")}
        missing = wanted - self._texts.keys() - {0}
        try:
            found = Atoms(self._target).texts(missing) if missing else {}
        except (ReadRefusedError, OSError):
            return False
        self._texts |= {0: None} | {index: found.get(index) for index in missing}
        return True
