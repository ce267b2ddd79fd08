# SPDX-License-Identifier: Apache-2.0
"""
Code upgrades in planted orders of events: which versions there are, and which gaps are reported.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.code.follow import Follow, Ran, may_have_run
from scope_ebpf.beam.code.functions import Function
from scope_ebpf.beam.code.modules import Code, newest

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = 0x100
CHOSEN = Function("cart", "handle_call", 3, FIRST + 16, FIRST, (7 << 6 | 0xB, 9 << 6 | 0xB), False)


class Vm:
    """
    The tables of modules as a VM writes them: one is in use, the next is written, then in use.

    *now* is its clock; *during* is done before and after each reading of the tables, *read* at it.
    """

    def __init__(self, *, knows_active: bool = True) -> None:
        self.knows_active = knows_active
        self.tables = [(FIRST, 0)] * 3
        self.active = self.now = 0
        self.during: Callable[[], None] = lambda: None
        self.read: Callable[[], None] = lambda: None
        self._last: tuple[tuple[tuple[int, int], ...], int] = tuple(self.tables), 0

    def stage(self, header: int = 0) -> None:
        """
        Prepare a load, of this code or of another module.
        """
        current, old = self.tables[self.active]
        self.tables[self._next] = (header, current) if header else (current, old)

    def commit(self) -> None:
        self.active = self._next

    def load(self, header: int = 0) -> None:
        self.stage(header)
        self.commit()

    def purge(self) -> None:
        self.tables[self.active] = self.tables[self.active][0], 0

    @property
    def _next(self) -> int:
        return (self.active + 1) % 3

    @property
    def live(self) -> set[int]:
        """
        Code that can be called.
        """
        return {*self.tables[self.active]} - {0}

    def code(self, indices: object) -> dict[int, Code]:
        self.during()
        tables, active = tuple(self.tables), self.active
        if not self.knows_active:
            active = newest(*self._last[:1], tables, self._last[1])
            self._last = tables, active
        current, old = tables[active]
        others = dict.fromkeys(c for c, _ in tables if c not in (0, current))
        found = Code(current, old, (*others,), tables, active if self.knows_active else None)
        self.read()
        self.during()
        return dict.fromkeys(indices, found)

    def clock(self) -> int:
        return self.now


class Everywhere:
    """
    Functions that are in every code, 16 bytes behind its start.
    """

    def again(self, chosen: Function, header: int) -> Function:
        return Function("cart", "handle_call", 3, header + 16, header, chosen.terms, False)


def followed(vm: Vm) -> Follow:
    made = Follow(Everywhere(), vm, [CHOSEN], vm.clock)
    made.watch(made.wanted)
    return made


def look(vm: Vm, made: Follow, at: int, armed: int = 0) -> bool:
    """
    Look at a time, and have breakpoints *armed* so much later.
    """
    vm.now = at
    changed = made.look()
    vm.now = at + armed
    made.watch(made.wanted)
    return changed


def gaps(made: Follow) -> list[tuple[int, int | None]]:
    return [(v.number, v.gap_ns) for v in made.all]


def test_code_that_was_watched_before_a_look_that_proves_it_idle_has_no_gap():
    """
    The next table shows code before it is current; watched by then, none of its calls is missing.
    """
    vm = Vm()
    made = followed(vm)
    vm.stage(0x200)
    assert look(vm, made, 5)
    assert not look(vm, made, 7)
    vm.commit()
    assert look(vm, made, 9)
    assert [(1, 0), (2, 0)] == gaps(made)
    assert [2, 1] == [v.number for v in made.wanted]


def test_code_that_came_into_use_while_breakpoints_were_armed_has_a_gap():
    """
    From the look that showed it idle until the breakpoint stood it may have run.
    """
    vm = Vm()
    made = followed(vm)
    vm.stage(0x200)
    vm.now = 50
    assert made.look()
    vm.commit()
    vm.now = 57
    made.watch(made.wanted)
    assert look(vm, made, 80)
    assert [(1, 0), (2, 7)] == gaps(made)
    assert 57 == made.all[-1].end_ns


def test_code_that_was_seen_late_has_the_gap_between_two_looks():
    """
    From the last look without it until the breakpoint stands, it may have run.
    """
    vm = Vm()
    made = followed(vm)
    assert not look(vm, made, 40)
    vm.load(0x200)
    assert look(vm, made, 50, 3)
    assert [(1, 0), (2, 13)] == gaps(made)
    assert 53 == made.all[-1].end_ns


def test_code_at_an_address_that_was_used_before_is_another_version():
    """
    The VM uses memory again: what comes after the second version is the third, not the first.
    """
    vm = Vm()
    made = followed(vm)
    vm.load(0x200)
    look(vm, made, 10)
    vm.purge()
    vm.load(FIRST)
    look(vm, made, 20)
    assert [3, 2] == [v.number for v in made.wanted]
    assert 3 == made.at[FIRST + 16].number


def test_code_that_came_and_went_between_two_looks_has_left_a_gap():
    """
    The third version lies where the first was watched; the second, between them, was not.
    """
    vm = Vm()
    made = followed(vm)
    for header in (0x200, FIRST):
        vm.purge()
        vm.load(header)
    assert look(vm, made, 60)
    assert [(1, 0), (2, 60), (3, 60)] == gaps(made)
    assert [FIRST, 0x200] == [v.function.code for v in made.wanted]


def test_code_that_was_purged_before_anybody_looked_has_left_a_gap():
    """
    It is neither current nor old any more, only the table that was in use between shows it.
    """
    vm = Vm()
    made = followed(vm)
    for header in (0x200, FIRST):
        vm.purge()
        vm.load(header)
    vm.purge()
    assert look(vm, made, 60)
    assert [(1, 0), (2, 60), (3, 60)] == gaps(made)


def test_code_that_was_to_come_and_is_gone_has_left_a_gap():
    """
    It was seen idle once; three loads later no table shows it, but it may have run unwatched.
    """
    vm = Vm()
    made = followed(vm)
    vm.stage(0x200)
    vm.now = 10
    assert made.look()
    vm.commit()
    for header in (0x300, 0x400, 0x500):
        vm.purge()
        vm.load(header)
    vm.purge()
    vm.now = 15
    made.watch(made.wanted)
    assert look(vm, made, 60)
    assert (2, 5) in gaps(made)


def test_code_where_a_breakpoint_stood_once_has_not_been_watched():
    """
    The first version was purged and is watched no more; the third, at its address, has a gap.
    """
    vm = Vm()
    made = followed(vm)
    steps = (lambda: vm.load(0x200), vm.purge, lambda: vm.load(FIRST))
    for at, step in enumerate(steps, 1):
        step()
        assert look(vm, made, 10 * at)
    assert [(1, 0), (2, 10), (3, 10)] == gaps(made)


def test_code_to_come_at_an_address_that_was_used_before_is_watched_in_time():
    """
    A table that is not in use was written: what lies in it is new, wherever it lies.
    """
    vm = Vm()
    made = followed(vm)
    steps = (lambda: vm.load(0x200), vm.purge, lambda: vm.stage(FIRST), vm.stage, vm.commit)
    for at, step in enumerate((*steps[:3], lambda: None, steps[4]), 1):
        step()
        look(vm, made, 10 * at)
    assert [(1, 0), (2, 10), (3, 0)] == gaps(made)
    assert 3 == made.at[FIRST + 16].number


def test_what_lies_in_an_unused_table_at_first_is_not_to_come():
    """
    A table that is not in use holds what was; no register is spent on it.
    """
    vm = Vm()
    vm.load(0x200)
    vm.purge()
    assert [0x210] == [v.function.address for v in followed(vm).wanted]


def test_loads_of_other_modules_make_no_version():
    """
    They copy what is current into the next table and use that: nothing is new.
    """
    vm = Vm()
    vm.load(0x200)
    vm.purge()
    made = followed(vm)
    for at in range(1, 9):
        vm.stage()
        assert not look(vm, made, 10 * at)
        vm.commit()
        assert not look(vm, made, 10 * at + 5)
    assert [(1, 0)] == gaps(made)


@pytest.mark.parametrize("last", [0x400, FIRST])
def test_a_whole_round_of_tables_is_distinguished_from_none(last: int):
    """
    Three loads lead to the same table again, perhaps to the same address: the others have changed.
    """
    vm = Vm()
    before = vm.code([7])[7]
    for header in (0x200, 0x300, last):
        vm.load(header)
    assert Ran({0x200, 0x300}, more=True) == may_have_run(vm.code([7])[7], before)


@pytest.mark.parametrize(
    ("tables", "number"),
    [
        ([(2, 1), (1, 0), (1, 0)], 0),
        ([(1, 0), (2, 1), (3, 2)], 2),
        ([(1, 2), (1, 0), (2, 1)], 0),
        ([(3, 2), (4, 3), (2, 1)], 1),
        ([(1, 0), (1, 0), (1, 0)], 1),
    ],
)
def test_the_table_that_was_written_last_is_found_in_the_circle(
    tables: list[tuple[int, int]], number: int
):
    """
    Behind the third comes the first, though its number is less.
    """
    before = ((1, 0),) * 3
    assert number == newest(before, tuple(tables), 1)


class Run:
    """
    A VM at work, and the follower of its code: each at any moment of the other.

    Every call of code that can be called and has no breakpoint is *unseen*. Between two readings
    of the tables there are at most *loads*; with *fresh* addresses none is used again.
    """

    def __init__(self, seed: int, *, knows_active: bool, loads: int, fresh: bool) -> None:
        self.rng = random.Random(seed)
        self.vm = Vm(knows_active=knows_active)
        self.unseen: list[tuple[int, int]] = []
        self.armed: set[int] = {FIRST + 16}
        self.staged = False
        self.busy = self.rng.choice((0.1, 0.5, 0.8))
        self.loads = self.left = loads
        self.free = itertools.count(0x1000, 0x100) if fresh else None
        self.follow = followed(self.vm)
        self.vm.during, self.vm.read = self.work, self.has_read

    def has_read(self) -> None:
        self.left = self.loads

    def work(self) -> None:
        """
        Let some time pass: loads, purges and calls.
        """
        while self.rng.random() < self.busy:
            self._step()
            self.vm.now += 1
            unseen = [h for h in self.vm.live if h + 16 not in self.armed]
            self.unseen += [(self.vm.now, header) for header in unseen]
            self.vm.now += 1

    def _step(self) -> None:
        vm = self.vm
        if self.staged and self.left:
            vm.commit()
            self.staged = False
            self.left -= 1
        elif not self.staged:
            vm.purge()
            self.staged = True
            vm.stage(self._header() if self.rng.random() < 0.7 else 0)

    def _header(self) -> int:
        if self.free is not None:
            return next(self.free)
        return self.rng.choice(sorted({0x100, 0x200, 0x300, 0x400} - self.vm.live))

    def turn(self) -> None:
        """
        Look, have breakpoints stand, and say so.
        """
        self.work()
        self.follow.look()
        self.work()
        self.armed = {version.function.address for version in self.follow.wanted[:4]}
        self.work()
        self.follow.watch(self.follow.wanted[:4])

    def untold(self) -> list[tuple[int, int]]:
        gaps = [(v.end_ns - v.gap_ns, v.end_ns) for v in self.follow.all if v.gap_ns]
        return [call for call in self.unseen if not any(a <= call[0] <= b for a, b in gaps)]


@pytest.mark.parametrize("knows_active", [True, False])
@pytest.mark.parametrize(("loads", "fresh"), [(2, False), (1000, True)])
def test_no_call_is_missing_outside_the_reported_gaps(knows_active: bool, loads: int, fresh: bool):
    """
    In random orders of loads, purges, looks and breakpoints each call is seen or in a reported gap.
    """
    missed = 0
    for seed in range(300):
        run = Run(seed, knows_active=knows_active, loads=loads, fresh=fresh)
        for _ in range(30):
            run.turn()
        run.busy = 0
        run.turn()
        assert [] == run.untold(), seed
        missed += len(run.unseen)
    assert missed > 1000
