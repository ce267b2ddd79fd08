# SPDX-License-Identifier: Apache-2.0
"""Where calls of marked functions return to: the functions at addresses in code."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Callers of one function that are told apart; the rest is counted as "...".
MOST_CALLERS = 10


class Places:
    """
    Names addresses in the code of *target*, while the code is there.

    ``known`` is False where the VM's tables of code are not found.
    """

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._code: CodeMap | None = None
        with suppress(ReadRefusedError):
            self._code = CodeMap(target, atoms)
        #: Functions by address, "" for what is not in Erlang code.
        self._names: dict[int, str] = {}

    @property
    def known(self) -> bool:
        """Whether addresses can be named."""
        return self._code is not None

    def learn(self, addresses: Iterable[int]) -> None:
        """Name addresses that were not seen yet; raises ReadRefusedError."""
        new = set(addresses) - self._names.keys()
        if not new or self._code is None:
            return
        self._code.refresh()
        for address, mfa in self._code.functions(new).items():
            self._names[address] = str(mfa or "")

    def refresh(self) -> None:
        """Read which code was loaded meanwhile; raises ReadRefusedError."""
        if self._code is not None:
            self._code.refresh()

    def location(self, address: int) -> Mfa | None:
        """The function at *address*, with file and line; None where that is not known."""
        return self._code.location(address) if self._code is not None else None

    def callers(self, rows: Iterable[tuple[int, int, int]]) -> dict[int, dict[str, int]]:
        """
        Calls by slot and by the function that they return to, of rows of slot, address, calls.

        "" are those that return to no Erlang code that is there, "..." those of rarer callers.
        """
        rows = list(rows)
        with suppress(ScopeError):  # the VM may have ended
            self.learn(address for _, address, _ in rows)
        found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for slot, address, calls in rows:
            found[slot][self._names.get(address, "")] += calls
        return {slot: _most(counts) for slot, counts in found.items()}


def _most(counts: dict[str, int]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    rest = sum(calls for _, calls in ordered[MOST_CALLERS:])
    return dict(ordered[:MOST_CALLERS]) | ({"...": rest} if rest else {})
