# SPDX-License-Identifier: Apache-2.0
"""
Functions through code upgrades: which versions there are, and which should be watched.

A new version lies in the tables of modules a moment before anybody runs it, so
it can mostly be watched from its first call on. Where it was not, the gap is told.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.functions import Function, Functions
    from scope_ebpf.beam.modules import Code, Modules


@dataclass(slots=True)
class Version:
    """
    One version of a watched function; *number* counts from 1 in the order they were seen.

    *gap_ns* is how long it may have run before it was watched: 0 where it was watched in time,
    None for code that does not run yet.
    """

    function: Function
    number: int
    watched: bool = False
    gap_ns: int | None = None


class Follow:
    """
    Follows *chosen* functions; *clock* is in ns.

    *all* has every version in the order they were seen, *at* the newest at each address.
    """

    def __init__(
        self,
        functions: Functions,
        modules: Modules,
        chosen: list[Function],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.at: dict[int, Version] = {}
        self._functions = functions
        self._modules = modules
        self._chosen = chosen
        self._clock = clock
        self.all: list[Version] = []
        self._versions: dict[tuple[int, int], Version] = {}
        self._numbers: Counter[int] = Counter()
        self._codes: dict[int, Code] = {}
        self._been: set[int] = set()
        #: Code that lies in an unused table since that was last written, by the module's index.
        self._coming: dict[int, set[int]] = {}
        self._looked = clock()
        #: When :meth:`watch` was told last.
        self.watched_ns = self._looked
        self.wanted: list[Version] = []
        self.look()
        for version in self.wanted:
            version.gap_ns = 0  # it was there before anybody asked

    def look(self) -> bool:
        """Look for new versions; whether :attr:`wanted`, most important first, has changed."""
        before, now = self._looked, self._clock()
        codes = self._modules.code(dict.fromkeys(f.terms[0] >> 6 for f in self._chosen))
        self._looked = now
        if codes == self._codes:
            return False
        # What was current before, or lies in the unused tables at first, is not to come.
        known = self._codes or codes
        self._been |= {c.current for c in known.values()}
        if not self._codes and self._modules.knows_active:
            self._been |= {h for code in codes.values() for h in code.others}
        previous, self._codes = self._codes, codes
        for index, code in codes.items():
            self._expect(index, code, previous.get(index))
        passed = {i for i, code in codes.items() if _passed_over(code, previous.get(i))}
        current, coming, old = [], [], []
        for number, function in enumerate(self._chosen):
            index = function.terms[0] >> 6
            code, last = codes[index], previous.get(index)
            # Code never comes back: at an address that was current before lies other code now.
            again = index in passed or (last is not None and code.current != last.current)
            current += self._version(number, code.current, again=again)
            written = self._coming[index] if self._modules.knows_active else set()
            for header in code.others:
                if header in written or header not in self._been:
                    coming += self._version(number, header, again=header in written)
            old += self._version(number, code.old)
        run = (*current, *old) if self._modules.knows_active else (*current, *coming, *old)
        for version in run:
            index = version.function.terms[0] >> 6
            version.gap_ns = self._gap(version, now - before, passed_over=index in passed)
        self.wanted = list({id(v): v for v in (*current, *coming, *old)}.values())
        return True

    def _expect(self, index: int, code: Code, last: Code | None) -> None:
        """
        Note which code of a module is to come.

        The VM uses memory again: an address in a table that was written since the last look is that
        of new code, whatever was there before.
        """
        coming = self._coming.setdefault(index, set())
        coming &= {*code.others}
        if last is not None:
            pairs = zip(code.tables, last.tables, strict=True)
            fresh = {now[0] for now, before in pairs if now != before}
            coming |= fresh & {*code.others} - {code.old}

    def _gap(self, version: Version, since_ns: int, *, passed_over: bool) -> int:
        if version.gap_ns is not None:
            return version.gap_ns
        return 0 if version.watched and not passed_over else since_ns

    def _version(self, number: int, header: int, *, again: bool = False) -> list[Version]:
        """The version of function *number* in the code at *header*: one, or none."""
        if not header:
            return []
        key = (number, header)
        known = self._versions.get(key)
        expected = known is not None and known.gap_ns is None
        if known is None or again or expected:
            function = self._functions.again(self._chosen[number], header)
            if function is None:
                return []
            # What is to come may have been written since it was looked at.
            if known is None or not expected or function.address != known.function.address:
                known = self._new(key, function, known)
        return [known]

    def _new(self, key: tuple[int, int], function: Function, before: Version | None) -> Version:
        self._numbers[key[0]] += 1
        # Where the same address was watched until now, it still is.
        same = before is not None and before.function.address == function.address
        watched = same and before is not None and before.watched
        version = Version(function, self._numbers[key[0]], watched)
        self._versions[key] = self.at[function.address] = version
        self.all.append(version)
        return version

    def watch(self, versions: list[Version]) -> None:
        """Say that *versions*, and no others, are watched from now on."""
        now = self.watched_ns = self._clock()
        here = {id(version) for version in versions}
        for version in self.all:
            version.watched = version.watched and id(version) in here
        for version in versions:
            if not version.watched:
                version.watched = True
                if version.gap_ns:
                    version.gap_ns += now - self._looked


def _passed_over(code: Code, last: Code | None) -> bool:
    """
    Whether code came and went between two looks, which nobody watched.

    A load writes one table; others get what is current. So two new values are two loads.
    """
    if last is None:
        return False
    pairs = zip(code.tables, last.tables, strict=True)
    return len({now[0] for now, before in pairs if now[0] not in (0, before[0])}) > 1
