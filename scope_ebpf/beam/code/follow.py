# SPDX-License-Identifier: Apache-2.0
"""
Functions through code upgrades: which versions there are, and which should be watched.

A new version lies in the tables of modules a moment before it runs, so
it can mostly be watched from its first call on. Where it was not, the gap is reported.

Every reading notes the time before it. So code that a reading shows as not in use was not in use at
that time, and code that may run now has a gap unless it was watched by then.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.code.functions import Function, Functions
    from scope_ebpf.beam.code.modules import Code, Modules

#: Tables of modules, which the VM uses in turn.
_TABLES = 3


@dataclass(slots=True)
class Version:
    """One version of a watched function."""

    function: Function
    #: From 1, in the order in which versions were seen.
    number: int
    #: Since when it has been watched, ns; None while it is not.
    watched_ns: int | None = None
    #: How long it may have run unwatched before *end_ns*, ns: 0 if it was watched in time, None
    #: for code that does not run yet.
    gap_ns: int | None = None
    #: End of that gap, ns.
    end_ns: int = 0


class Follow:
    """
    Follows *chosen* functions; *clock* is in ns.

    *all* has every version in the order they were seen, *at* the newest at each address. After
    three or more loads between two readings, code at an address of earlier code may not show.
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
        #: Versions that may run unwatched, each with the last time when it was proved not to.
        self._gaps: list[tuple[Version, int]] = []
        self._looked = clock()
        self.wanted: list[Version] = []
        self.look()
        self._gaps.clear()
        for version in self.wanted:
            version.gap_ns = 0  # it was there before the first reading

    def look(self) -> bool:
        """
        Read the tables again; true if there is a new version, or :attr:`wanted` has changed.

        The most important are wanted first.
        """
        before, self._looked = self._looked, self._clock()
        codes = self._modules.code(dict.fromkeys(f.terms[0] >> 6 for f in self._chosen))
        if codes == self._codes:
            return False
        # Code that was current, or lies in the unused tables at first, is not the next code.
        known = self._codes or codes
        self._been |= {c.current for c in known.values()}
        if not self._codes and self._modules.knows_active:
            self._been |= {h for code in codes.values() for h in code.others}
        self._codes = codes
        for index, code in codes.items():
            self._expect(index, code, known[index])
        previous = self._state()
        self.wanted = self._find(codes, known, before)
        return self._state() != previous

    def _state(self) -> tuple[list[int], list[bool]]:
        return [id(v) for v in self.wanted], [v.gap_ns is None for v in self.all]

    def _find(self, codes: dict[int, Code], known: dict[int, Code], before: int) -> list[Version]:
        """Find the versions in *codes*, and which of them may have run since *before*."""
        current, coming, old = [], [], []
        ran = {index: may_have_run(code, known[index]) for index, code in codes.items()}
        for number, function in enumerate(self._chosen):
            index = function.terms[0] >> 6
            code, last, passed = codes[index], known[index], ran[index].passed
            for header in sorted(ran[index].headers):
                old += self._version(number, header, again=True)
            old += self._version(number, code.old)
            if code.active is None:  # what was in use may be in use yet
                headers = {header for table in code.tables for header in table}
                for header in sorted(headers & {last.current, last.old}):
                    old += self._version(number, header)
            # Code never comes back: at an address that was current before lies other code now.
            now = self._version(number, code.current, again=passed or code.current != last.current)
            for version in now:
                self._ran(version, before, passed=passed)
            current += now
            for header in self._to_come(index, code, ran[index].headers):
                coming += self._version(number, header, again=header in self._coming[index])
        waits = {id(v) for v in coming} if self._modules.knows_active else set()
        for version in self.all:
            if id(version) not in waits:
                self._ran(version, before, passed=False)
        return list({id(v): v for v in (*current, *coming, *old)}.values())

    def _to_come(self, index: int, code: Code, ran: set[int]) -> list[int]:
        """Return where the next code lies; some of it may run where that is hidden."""
        headers = [header for header in code.others if header not in ran]
        if code.active is not None:
            headers = [h for h in headers if h == code.tables[_next(code.active)][0]]
        return [h for h in headers if h in self._coming[index] or h not in self._been]

    def _expect(self, index: int, code: Code, last: Code) -> None:
        """
        Record the next code of a module.

        The VM uses memory again: an address in a table that was written since the last reading is
        that of new code, whatever was there before.
        """
        coming = self._coming.setdefault(index, set())
        coming &= {*code.others}
        pairs = zip(code.tables, last.tables, strict=True)
        fresh = {now[0] for now, before in pairs if now != before}
        coming |= fresh & {*code.others} - {code.old}

    def _ran(self, version: Version, before: int, *, passed: bool) -> None:
        """Record that a version may have run since *before*."""
        if version.gap_ns is not None:
            return
        if passed or version.watched_ns is None:
            version.gap_ns = self._looked - before
            self._gaps.append((version, before))
        else:
            version.gap_ns = max(0, version.watched_ns - before)
            version.end_ns = version.watched_ns

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
            # The next code may have been written since it was read.
            if known is None or not expected or function.address != known.function.address:
                known = self._new(key, function, known)
        return [known]

    def _new(self, key: tuple[int, int], function: Function, before: Version | None) -> Version:
        self._numbers[key[0]] += 1
        # Where the same address was watched until now, it still is.
        same = before is not None and before.function.address == function.address
        watched = before.watched_ns if same and before is not None else None
        version = Version(function, self._numbers[key[0]], watched)
        self._versions[key] = self.at[function.address] = version
        self.all.append(version)
        return version

    def watch(self, versions: list[Version]) -> None:
        """Record that *versions*, and no others, are watched from now on."""
        now = self._clock()
        here = {id(version) for version in versions}
        for version in self.all:
            if id(version) not in here:
                version.watched_ns = None
            elif version.watched_ns is None:
                version.watched_ns = now
        for version, since in self._gaps:
            version.gap_ns, version.end_ns = now - since, now
        self._gaps.clear()


class Ran(NamedTuple):
    """*headers* of code that may have been in use; *more*: and others, which no table shows now."""

    headers: set[int]
    more: bool

    @property
    def passed(self) -> bool:
        """Whether code may have come and gone."""
        return self.more or bool(self.headers)


def may_have_run(code: Code, last: Code) -> Ran:
    """
    Return other code than is and was current that may have been in use since the *last* reading.

    The VM writes the table behind that in use, then uses it, and so on in a circle; of the table in
    use it only forgets the old code. What else has changed was written in more rounds than one.
    """
    pairs = zip(code.tables, last.tables, strict=True)
    changed = {n for n, (now, before) in enumerate(pairs) if now != before}
    more, waits = False, set[int]()
    if code.active is not None and last.active is not None:
        loads = (code.active - last.active) % _TABLES
        used = {(last.active + n) % _TABLES for n in range(1, loads + 1)}
        rewritten = code.tables[last.active][0] != last.tables[last.active][0]
        more = loads < 2 and rewritten  # after two it is the next to be written
        more |= bool(changed - used - {last.active, _next(code.active)})
        changed |= used
        waits = set() if more or loads > 1 else {_next(code.active)}
    headers = {code.tables[n][0] for n in changed - waits}
    if code.active is None:
        headers |= {code.tables[n][1] for n in changed} - {last.old}  # it was current
    return Ran(headers - {0, code.current, last.current}, more)


def _next(table: int) -> int:
    return (table + 1) % _TABLES
