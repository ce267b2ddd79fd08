# SPDX-License-Identifier: Apache-2.0
"""Native functions that the clock found, under a bounded number of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError
from scope_ebpf.metrics.reading import NativeReading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.tracepoints import Mfa

#: Names that are shown; what has no name of its own is other.
NAMES = 4
OTHER = "other"
#: Samples after which a function is given a name, if there is one left.
_ENOUGH = 10


class Natives:
    """
    The native functions of *target*; *seconds* is the time that a sample stands for.

    A name that is given stays, so that its figures only grow, and so do those of other: what
    came before a function had its name is left there.
    """

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._atoms: Atoms | None = None
        self._named: dict[Mfa, str] = {}
        self._seen: dict[Mfa, tuple[int, int]] = {}
        self._totals: dict[str, list[int]] = {OTHER: [0, 0]}

    def take(self, found: Mapping[Mfa, tuple[int, int]]) -> dict[str, NativeReading]:
        """Take in what was found so far; the last of what comes out is other."""
        for mfa in sorted(found, key=lambda mfa: -found[mfa][0]):
            self._name(mfa, found[mfa][0])
        for mfa, counts in found.items():
            before = self._seen.get(mfa, (0, 0))
            total = self._totals[self._named.get(mfa, OTHER)]
            for place in (0, 1):
                total[place] += max(0, counts[place] - before[place])
        self._seen = dict(found)
        return {
            name: NativeReading(self._totals[name][0] * self._seconds, self._totals[name][1])
            for name in (*self._totals.keys() - {OTHER}, OTHER)
        }

    def _name(self, mfa: Mfa, samples: int) -> None:
        """Give *mfa* a name, if it was found often enough and there is one left."""
        if mfa in self._named or samples < _ENOUGH or len(self._totals) > NAMES:
            return
        try:
            if self._atoms is None:
                self._atoms = Atoms(self._target)
            names = [self._atoms.text(term) for term in (mfa.module, mfa.function)]
        except ReadRefusedError:
            return
        self._named[mfa] = name = f"{names[0]}:{names[1]}/{mfa.arity}"
        self._totals.setdefault(name, [0, 0])
