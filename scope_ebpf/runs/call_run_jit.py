# SPDX-License-Identifier: Apache-2.0
"""One run of ``calls`` on the JIT: sets breakpoints, writes calls, follows code upgrades."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.follow import Follow
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.kernel.attach.breakpoints import MOST
from scope_ebpf.kernel.observers.call_watch import BREAKPOINT_SECONDS, BreakpointSite, CallWatch
from scope_ebpf.results.call_gaps import Gap, Gaps
from scope_ebpf.results.calls import Call, CallSummary, Upgrade
from scope_ebpf.runs.call_reader import CallReader
from scope_ebpf.runs.call_run import CallRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.beam.code.functions import Function, Functions
    from scope_ebpf.beam.code.modules import Modules
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.runs.call_run import CallOptions
    from scope_ebpf.sinks.calls import CallLines

#: Seconds between two looks at threads and at the addresses that calls return to.
_SLOW_INTERVAL = 1.0
#: Looks after an upgrade, until breakpoints stand before the last one.
_UPGRADE_LOOKS = 3
#: Seconds between two looks in which the VM may load code three times.
_LATE = 0.02


class JitCallRun(CallRun):
    """One run on the JIT, of the functions *chosen*."""

    def __init__(
        self,
        target: Target,
        found: tuple[Atoms, Modules, Functions],
        chosen: list[Function],
        options: CallOptions,
    ) -> None:
        atoms, modules, functions = found
        super().__init__(target, options, CallSummary(target.as_json(), options.durations))
        self._reader = CallReader(target, atoms)
        self._chosen = chosen
        self._follow = Follow(functions, modules, chosen)
        self._gaps = Gaps()
        self._drained_ns = 0
        #: Addresses that calls return to, those with a breakpoint.
        self._armed: set[int] = set()
        #: Versions that were written, by ``id``.
        self._written = {id(version) for version in self._follow.all}
        self._looked = self._turned = time.monotonic()
        #: The longest time between two turns, seconds.
        self._longest = 0.0
        for function in chosen:
            self.summary.of(str(function), 1)
        self._breakpoints = CallWatch(
            target.identity,
            options.limit,
            target.layout.offset("Process", "hend"),
            target.layout.facts.map_subtag,
        )

    @property
    def _observer(self) -> CallWatch:
        return self._breakpoints

    def _begin(self) -> None:
        self._set()
        self._turned = time.monotonic()

    def _cost(self) -> float:
        stops = ("calls", "strange", "refused", "beyond")
        totals = self._breakpoints.totals().values()
        return BREAKPOINT_SECONDS * sum(at[name] for at in totals for name in stops)

    def _follow_changes(self, lines: CallLines) -> None:
        """Follow code, threads and the addresses that calls return to."""
        now = time.monotonic()
        self._longest, self._turned = max(self._longest, now - self._turned), now
        self._note_missing(self._drained_ns)
        if self._follow.look():
            self._upgrade(lines)
        elif now - self._looked > _SLOW_INTERVAL or self._wants_return():
            self._looked = now
            self._set()

    def _wants_return(self) -> bool:
        """Whether a register is free for an address that calls return to."""
        free = MOST - len(self._follow.wanted[:MOST])
        return len(self._armed) < free and bool(self._returned_to(free) - self._armed)

    def _returned_to(self, free: int) -> set[int]:
        """The addresses that most calls return to, as many as registers are *free*."""
        if not self.summary.durations:
            return set()
        return {at for at in self._reader.returned_to(free) if at not in self._follow.at}

    def _set(self) -> None:
        """Set breakpoints where they are wanted now: current code, coming code, old, returns."""
        versions = self._follow.wanted[:MOST]
        sites = [
            BreakpointSite(v.function.address, *v.function.terms, v.function.arity)
            for v in versions
        ]
        self._armed = self._returned_to(MOST - len(sites))
        sites += [BreakpointSite(address) for address in self._armed]
        # Only these run Erlang code: the dirty schedulers run native functions alone.
        tids = [t.tid for t in threads(self._target.pid) if t.role == "normal"]
        self._breakpoints.set(sites, tids)
        self._follow.watch(versions)

    def _upgrade(self, lines: CallLines) -> None:
        """Follow code that was loaded: set the breakpoints first, write the upgrade then."""
        self._set()
        for _ in range(_UPGRADE_LOOKS):
            if not self._follow.look():  # code that has not run by now is watched in time
                break
            self._set()
        self._reader.refresh()
        news = [v for v in self._follow.all if v.gap_ns is not None and id(v) not in self._written]
        for version in sorted(news, key=lambda v: v.end_ns - (v.gap_ns or 0)):
            self._written.add(id(version))
            name, number = str(version.function), version.number
            at_ns = version.end_ns if version.gap_ns else time.monotonic_ns()
            lines.write(Upgrade(at_ns, name, number, version.gap_ns))
            self.summary.of(name, number)
            if version.gap_ns:
                self._gaps.add(Gap(name, number, version.end_ns, version.gap_ns))
        lines.flush()
        left_out = self._follow.wanted[MOST:]
        if left_out:
            self.summary.notes.append(
                f"the CPU has {MOST} debug registers, so calls of "
                + ", ".join(f"{v.function} version {v.number}" for v in left_out)
                + " are not counted any more"
            )

    def _note_missing(self, now_ns: int, *, last: bool = False) -> None:
        """Note how many calls are missing in gaps whose calls before and after are known."""
        for gap, missing in self._gaps.close(now_ns, last=last):
            self.summary.of(gap.function, gap.version).missing = missing
            self.summary.notes.append(
                f"{gap.function} was replaced while it was watched: calls of version "
                f"{gap.version} in its first {gap.most_ns / 1e6:.1f} ms at most are not counted, "
                f"about {missing.calls} ± {missing.error} by those beside"
            )

    def _drain(self, lines: CallLines) -> None:
        """Write what is in the ring."""
        self._drained_ns = time.monotonic_ns()
        with self._breakpoints.batch() as rows:
            if not len(rows):
                return
            who = self._reader.who(rows)
            for row in rows:
                version = self._follow.at.get(int(row["address"]))
                if version is None:
                    continue  # cannot be: only what is followed is watched
                seen = self._reader.read(row, version, who)
                self.summary.add(seen)
                if isinstance(seen, Call):
                    self._gaps.called(seen.function, seen.time_ns)
                lines.write(seen)
        lines.flush()

    def _sum_up(self) -> None:
        """Add what the kernel counted to the summary."""
        self._note_missing(self._drained_ns, last=True)
        totals = self._breakpoints.totals()
        for address, version in self._follow.at.items():
            counted = totals.get(address)
            if counted is None:
                continue
            function = self.summary.of(str(version.function), version.number)
            function.calls += counted["lost"]
            function.lost += counted["lost"]
            function.refused += counted["refused"]
            function.beyond = counted["beyond"] > 0
        notes = self.summary.notes
        if sum(t.beyond for t in self.summary.functions.values()):
            notes.append("calls beyond the limit were not counted: breakpoints went out with it")
        elsewhere = [t for a, t in totals.items() if a not in self._follow.at]
        if self._longest > _LATE and len(self._follow.all) > len(self._chosen):
            notes.append(
                f"new code was not looked for during {1e3 * self._longest:.0f} ms, as the host was "
                "busy: code that was loaded three times meanwhile may be missing"
            )
        notes += uncounted([t for a, t in totals.items() if a in self._follow.at])
        if self.summary.durations:
            notes.append(_measured(self.summary, elsewhere))
        if any(t["beyond"] for t in elsewhere):
            notes.append("a place that calls return to is shared by others, and was left early")


def uncounted(functions: Sequence[dict[str, int]]) -> list[str]:
    """Notes on *functions* at whose addresses other code has run meanwhile."""
    strange = sum(total["strange"] for total in functions)
    why = "other code came to an address that was watched"
    return [f"{strange:,} calls are not counted: {why}"] if strange else []


def _measured(summary: CallSummary, returns: Sequence[dict[str, int]]) -> str:
    """A note on the share of calls whose duration was measured, and why not the others."""
    measured = sum(len(t.durations_ns) for t in summary.functions.values())
    lost = sum(t["lost"] for t in returns)
    more = f" ({lost:,} returns had no room)" if lost else ""
    return (
        f"durations are those of {measured:,} of {summary.calls:,} calls{more}: the others came "
        "before the place that they return to was known, return elsewhere, ended by an exception "
        "or a tail call of the same function, or had not returned"
    )
