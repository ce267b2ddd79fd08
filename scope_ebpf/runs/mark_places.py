# SPDX-License-Identifier: Apache-2.0
"""Where calls of marked functions return to: the functions at addresses in code."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Callers of one function that are distinguished; the rest is counted as "...".
MOST_CALLERS = 10
#: Callers of one function that are counted apart meanwhile: names of new code have no end.
_MOST_NAMES = 1024
_REST = "..."


class Places:
    """
    Names addresses in the code of *target*, while the code is there.

    ``known`` is False where the VM's tables of code are not found.
    """

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._code: CodeMap | None = None
        with suppress(ReadRefusedError):
            self._code = CodeMap(target, atoms)
        #: Calls of which it is settled who made them, by slot and address, as they were counted.
        self._settled: dict[tuple[int, int], int] = {}
        #: Those calls by slot and caller.
        self._calls: dict[int, dict[str, int]] = defaultdict(dict)

    @property
    def known(self) -> bool:
        """Whether addresses can be named."""
        return self._code is not None

    @property
    def generation(self) -> int:
        """Grows whenever code was loaded or purged, as far as it was read."""
        return self._code.generation if self._code is not None else 0

    def count(self, read: Callable[[], list[tuple[int, int, int]]]) -> None:
        """
        Settle who made the calls since the last time; raises ReadRefusedError.

        *read* gives slot, address and calls until now. Where another function has come to an
        address since the last time, it is not known to which of both calls return: they are left
        out.
        """
        if self._code is None:
            return
        rows, before = read(), self._code.generation
        new = [row for row in rows if row[2] != self._settled.get(row[:2], 0)]
        addresses = {address for _, address, _ in new}
        were = self._code.functions(addresses)
        self._code.refresh()
        if self._code.generation == before:
            are, later = were, {}
        else:
            are = self._code.functions(addresses)
            later = {(slot, address): calls for slot, address, calls in read()}
        for slot, address, calls in new:
            was, now = were[address], are[address]
            if was and now and str(was) != str(now):
                self._settled[slot, address] = later.get((slot, address), calls)
            else:
                self._add(
                    slot, str(now or was or ""), calls - self._settled.get((slot, address), 0)
                )
                self._settled[slot, address] = calls

    def _add(self, slot: int, name: str, calls: int) -> None:
        of = self._calls[slot]
        name = name if name in of or len(of) < _MOST_NAMES else _REST
        of[name] = of.get(name, 0) + calls

    def refresh(self) -> None:
        """Read which code was loaded meanwhile; raises ReadRefusedError."""
        if self._code is not None:
            self._code.refresh()

    def location(self, address: int) -> Mfa | None:
        """The function at *address*, with file and line; None where that is not known."""
        return self._code.location(address) if self._code is not None else None

    def callers(self, read: Callable[[], list[tuple[int, int, int]]]) -> dict[int, dict[str, int]]:
        """
        Calls by slot and by the function that they return to, as far as that is known.

        *read* is that of :meth:`count`. "" are those that return to no Erlang code, "..." those of
        rarer callers.
        """
        with suppress(ScopeError):  # the VM may have ended
            self.count(read)
        return {slot: _most(counts) for slot, counts in self._calls.items()}


def _most(counts: dict[str, int]) -> dict[str, int]:
    ordered = sorted(
        ((name, calls) for name, calls in counts.items() if name != _REST),
        key=lambda one: (-one[1], one[0]),
    )
    rest = counts.get(_REST, 0) + sum(calls for _, calls in ordered[MOST_CALLERS:])
    return dict(ordered[:MOST_CALLERS]) | ({_REST: rest} if rest else {})
