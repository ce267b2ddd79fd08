# SPDX-License-Identifier: Apache-2.0
"""
Telemetry within a budget, in a simulated VM: which hook, for how long, and what its counts say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from scope_ebpf.errors import NothingToAttachError
from scope_ebpf.runs.telemetry_windows import Observation, Vm

ENTRY, BREAKPOINT = 1e-6, 8e-6


@dataclass
class Simulated:
    """
    A VM with so many events and other lookups a second, and hooks in it; a step takes a ms.
    """

    events: float
    lookups: float
    cpus: float = 1.0
    now: float = 100.0
    #: Where hooks are attached, None for nowhere; all events, and CPU that hits really took.
    at: str | None = None
    counting: bool = False
    emitted: float = 0.0
    taken: float = 0.0
    hits: float = 0.0
    own: float = 0.0
    seen: float = 0.0
    attached: list[str] = field(default_factory=list)

    def step(self) -> None:
        """
        Let a millisecond pass.
        """
        events, lookups = self.events / 1e3, self.lookups / 1e3
        self.now += 1e-3
        self.emitted += events
        if self.at is not None:
            others = lookups if self.at == "lookups" else 0
            self.hits += events + others
            self.own += events
            self.taken += PLACES[self.at].cost(others, events, ENTRY)
            self.seen += events * self.counting

    def start(self) -> None:
        """
        As of a watch.
        """
        self.counting = True

    def release(self) -> None:
        """
        As of a watch.
        """
        self.at, self.counting = None, False

    def counts(self) -> dict[str, int]:
        """
        As of a watch.
        """
        return {"hits": int(self.hits), "own": int(self.own)}

    def by_row(self) -> dict[bytes, int]:
        """
        As of a watch: one row.
        """
        return {b"row": int(self.seen)}


@dataclass
class Place:
    """
    A hook of a simulated VM.
    """

    via: str
    vm: Simulated | None = None
    turn: float = 0.01
    #: Whether it cannot be had, as others have it.
    taken: bool = False

    def cost(self, other: float, own: float, entry: float) -> float:
        """
        As of the real ones.
        """
        if self.via == "breakpoint":
            return own * (BREAKPOINT + 2 * entry)
        return other * entry + 3 * own * entry

    def attach(self) -> None:
        """
        Attach to the VM.
        """
        if self.taken:
            raise NothingToAttachError("the CPU's four debug registers are taken")
        assert self.vm is not None
        assert self.vm.at is None
        self.vm.at = self.via
        self.vm.attached.append(self.via)

    def follow(self) -> None:
        """
        Nothing moves.
        """

    def missed(self) -> float:
        """
        Nothing moves.
        """
        return 0.0


PLACES = {name: Place(name) for name in ("lookups", "breakpoint")}


def observe(
    vm: Simulated,
    places: tuple[str, ...],
    seconds: float = 10.0,
    budget: float = 0.01,
    taken: str = "",
):
    """
    What a run sees of *vm*, where the place *taken* cannot be had.
    """
    cpu = Vm(lambda: vm.cpus * vm.now, lambda: int(1e6 * vm.now))
    all_places = [Place(name, vm, taken=name == taken) for name in places]
    span = seconds or None
    run = Observation(vm, all_places, cpu, ENTRY, budget, span=span, clock=lambda: vm.now)
    run.begin()
    end = vm.now + seconds
    while vm.now < end:
        run.look()
        for _ in range(max(1, int(1e3 * run.pause))):
            vm.step()
    run.end()
    assert vm.at is None
    return run


def test_a_quiet_vm_is_counted_in_full():
    """
    Not a single window, whatever hooks there are, and no error.
    """
    vm = Simulated(events=1000, lookups=2000)
    run = observe(vm, ("lookups", "breakpoint"))
    assert ["lookups"] == vm.attached
    assert (int(vm.emitted), 0.0) == run.estimates()[b"row"]
    assert 1.0 == run.ratio
    assert 0 == run.windows


def test_many_other_lookups_are_left_to_themselves():
    """
    A breakpoint takes the place of the first hook, within the budget, and the count is right.
    """
    vm = Simulated(events=50, lookups=300_000)
    run = observe(vm, ("lookups", "breakpoint"))
    assert ["lookups", "breakpoint"] == vm.attached == run.vias
    assert vm.taken < 0.011 * vm.cpus * 10
    number, error = run.estimates()[b"row"]
    assert vm.emitted == pytest.approx(number, rel=0.05)
    assert error < 0.05


@pytest.mark.parametrize("cpus", [0.01, 1.0, 2.0])
@pytest.mark.parametrize(
    ("events", "lookups", "places"),
    [
        (50, 300_000, ("lookups",)),
        (20_000, 1000, ("lookups", "breakpoint")),
        (20_000, 1000, ("breakpoint",)),
    ],
)
def test_what_is_too_much_is_seen_in_windows_within_the_budget(
    cpus: float, events: int, lookups: int, places: tuple[str, ...]
):
    """
    Hooks take 1 % of the VM's CPU, one with little use of it counts as a fifth of a core.
    """
    vm = Simulated(events, lookups, cpus)
    run = observe(vm, places, seconds=30.0)
    assert vm.taken < 0.012 * max(cpus, 0.2) * 30
    assert run.spent == pytest.approx(vm.taken, rel=0.05)
    assert run.windows > 1
    number, error = run.estimates()[b"row"]
    assert abs(number - vm.emitted) < 3 * error * number + 1
    assert 0 < run.ratio < 0.5


def test_where_the_better_hook_cannot_be_had_the_other_one_has_windows():
    """
    The run goes on, within the budget.
    """
    vm = Simulated(events=50, lookups=300_000)
    run = observe(vm, ("lookups", "breakpoint"), taken="breakpoint")
    assert {"lookups"} == set(vm.attached)
    assert ["lookups"] == run.vias
    assert run.windows > 1
    assert vm.taken < 0.012 * 10


def test_everything_is_counted_again_when_a_burst_is_over():
    """
    Events after it have no error of their own.
    """
    vm = Simulated(events=50_000, lookups=0)
    run = Observation(
        vm,
        [Place("lookups", vm)],
        Vm(lambda: vm.now, lambda: None),
        ENTRY,
        0.01,
        clock=lambda: vm.now,
    )
    run.begin()
    for _ in range(60):
        vm.events = 50_000 if vm.now < 103 else 100
        for _ in range(1000):
            run.look()
            vm.step()
    assert vm.at == "lookups"
    run.end()
    assert 0.5 < run.ratio < 1
    assert 0 < run.estimates()[b"row"].error < 1


def test_without_a_budget_everything_is_counted():
    """
    However much it costs.
    """
    vm = Simulated(events=50_000, lookups=300_000)
    run = observe(vm, ("lookups", "breakpoint"), budget=float("inf"))
    assert ["lookups"] == vm.attached
    assert int(vm.emitted) == vm.by_row()[b"row"]
    assert 1.0 == run.ratio


def harvested(vm: Simulated, seconds: float) -> tuple[list[float], float, Observation]:
    """
    Events of *vm* by harvest, with the root of the sum of their variances.
    """
    run = Observation(
        vm,
        [Place("lookups", vm)],
        Vm(lambda: vm.cpus * vm.now, lambda: int(1e6 * vm.now)),
        ENTRY,
        0.01,
        clock=lambda: vm.now,
    )
    run.begin()
    found, variance, due = [], 0.0, vm.now + 5
    end = vm.now + seconds
    while vm.now < end or not run.is_ripe:
        run.look()
        if due <= vm.now < end and run.is_ripe:
            number, error = run.harvest().estimates[b"row"]
            found.append(number)
            variance += (number * error) ** 2
            due = vm.now + 5
        for _ in range(max(1, int(1e3 * run.pause))):
            vm.step()
    number, error = run.harvest().estimates[b"row"]
    return [*found, number], variance**0.5 + number * error, run


def test_harvests_of_a_quiet_vm_are_all_that_there_was():
    """
    Each event is in one harvest, and the hooks stay where they are.
    """
    vm = Simulated(events=1000, lookups=2000)
    found, error, run = harvested(vm, 30.0)
    assert int(vm.emitted) == sum(found)
    assert len(found) > 5
    assert 0 == error
    assert ["lookups"] == vm.attached
    assert run.paid == pytest.approx(vm.taken, rel=0.05)


@pytest.mark.parametrize("cpus", [0.1, 2.0])
def test_harvests_of_windows_add_up_within_the_budget(cpus: float):
    """
    Their sum is right within its error, and no harvest is a way to more than 1 % of the VM's CPU.
    """
    vm = Simulated(20_000, 1000, cpus)
    found, error, run = harvested(vm, 40.0)
    assert abs(sum(found) - vm.emitted) < 4 * error
    assert error < 0.3 * vm.emitted
    assert vm.taken < 0.0125 * max(cpus, 0.2) * 40
    assert run.paid == pytest.approx(vm.taken, rel=0.05)


def test_what_an_idle_time_left_is_no_allowance_for_a_burst():
    """
    After a minute of harvests without an event, a burst costs what the last seconds earned.
    """
    vm = Simulated(events=0, lookups=0)
    _, _, run = harvested(vm, 60.0)
    before, vm.events, end = vm.taken, 50_000, vm.now + 5
    while vm.now < end:
        run.look()
        for _ in range(max(1, int(1e3 * run.pause))):
            vm.step()
    assert vm.taken - before < 0.015 * (5 + 5)
