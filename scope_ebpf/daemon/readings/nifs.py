# SPDX-License-Identifier: Apache-2.0
"""Native functions (NIFs) that the sampling timer found, under a bounded number of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.metrics.reading import NifReading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.thread_watch import Mfa

#: Maximum number of names; all other functions are shown as ``other``.
NAMES = 4
OTHER = "other"
#: Minimum number of samples of a function that gets a name.
_MIN_SAMPLES = 10


class Nifs:
    """
    The native functions of *target*; *seconds* is the sampling interval.

    A name stays once it is given, so that its figures only grow. The figures of ``other`` only grow
    too: samples of a function from before it got a name stay there.
    """

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._atoms: Atoms | None = None
        self._named: dict[Mfa, str] = {}
        self._seen: dict[Mfa, tuple[int, int]] = {}
        self._totals: dict[str, list[int]] = {OTHER: [0, 0]}

    def update(self, found: Mapping[Mfa, tuple[int, int]]) -> dict[str, NifReading]:
        """
        The figures by name, ``other`` last.

        *found* are the samples and long calls of each function so far.
        """
        for mfa in sorted(found, key=lambda mfa: -found[mfa][0]):
            self._name(mfa, found[mfa][0])
        for mfa, counts in found.items():
            before = self._seen.get(mfa, (0, 0))
            total = self._totals[self._named.get(mfa, OTHER)]
            for column in (0, 1):
                total[column] += max(0, counts[column] - before[column])
        self._seen = dict(found)
        return {
            name: NifReading(self._totals[name][0] * self._seconds, self._totals[name][1])
            for name in (*self._totals.keys() - {OTHER}, OTHER)
        }

    def _name(self, mfa: Mfa, samples: int) -> None:
        """Give *mfa* a name, if it has enough samples and there is a free name."""
        if mfa in self._named or samples < _MIN_SAMPLES or len(self._totals) > NAMES:
            return
        try:
            if self._atoms is None:
                self._atoms = Atoms(self._target)
            names = [self._atoms.text(term) for term in (mfa.module, mfa.function)]
        except ReadRefusedError:
            return
        self._named[mfa] = name = f"{names[0]}:{names[1]}/{mfa.arity}"
        self._totals.setdefault(name, [0, 0])
