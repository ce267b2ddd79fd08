# SPDX-License-Identifier: Apache-2.0
"""One run of ``calls``: breakpoints set, calls told, upgrades followed, until something ends it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.beam.code.captured_words import WORDS, ShapeFormatter
from scope_ebpf.beam.code.follow import Follow
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.beam.processes.labels import Labels
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError
from scope_ebpf.kernel.attach.breakpoints import MOST
from scope_ebpf.kernel.observers.call_watch import BREAKPOINT_SECONDS, CallWatch, Place
from scope_ebpf.results.call_gaps import Gap, Gaps
from scope_ebpf.results.calls import Call, CallSummary, Return, Upgrade
from scope_ebpf.runs.call_run import CallTurns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from scope_ebpf.beam.code.functions import Function, Functions
    from scope_ebpf.beam.code.modules import Modules
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.sinks.calls import CallLines

#: How often threads and the places that calls return to are looked at again.
_SLOW = 1.0
#: Looks after an upgrade, until breakpoints stand before the last one.
_LOOKS = 3
#: Seconds between two looks, in which the VM may load code three times.
_LATE = 0.02
#: Arguments of which the kernel side keeps the terms.
_ARGUMENTS = 8


class CallRun(CallTurns):
    """One run on the JIT, of the functions *chosen*."""

    def __init__(
        self,
        target: Target,
        found: tuple[Atoms, Modules, Functions],
        chosen: list[Function],
        *,
        limit: int,
        duration: float | None,
        durations: bool,
        max_cost: float | None,
    ) -> None:
        atoms, modules, functions = found
        summary = CallSummary(target.as_json(), durations)
        super().__init__(target, limit, duration, summary, max_cost)
        self._code = CodeMap(target, atoms)
        self._labels = Labels(target, atoms, self._code)
        self._pids = PidCodec.of(target)
        self._shaper = ShapeFormatter(target, atoms)
        self._chosen = chosen
        self._follow = Follow(functions, modules, chosen)
        self._gaps = Gaps()
        self._drained_ns = 0
        self._callers: dict[int, tuple[str, str]] = {}
        self._returns: Counter[int] = Counter()
        self._exit = _normal_exit(target)
        #: Places that calls return to at which a breakpoint stands.
        self._armed: set[int] = set()
        self._told = {id(version) for version in self._follow.all}
        self._looked = self._turned = time.monotonic()
        #: The longest time between two turns, seconds.
        self._longest = 0.0
        for function in chosen:
            self.summary.of(str(function), 1)
        self._breakpoints = CallWatch(
            target.identity,
            limit,
            target.layout.offset("Process", "hend"),
            target.layout.facts.map_subtag,
        )

    @property
    def _watch(self) -> CallWatch:
        return self._breakpoints

    def _begin(self) -> None:
        self._set()
        self._turned = time.monotonic()

    def _cost(self) -> float:
        stops = ("calls", "strange", "refused", "beyond")
        totals = self._watch.totals().values()
        return BREAKPOINT_SECONDS * sum(at[name] for at in totals for name in stops)

    def _look(self, lines: CallLines) -> None:
        """Follow code, threads and the places that calls return to."""
        now = time.monotonic()
        self._longest, self._turned = max(self._longest, now - self._turned), now
        self._tell_missing(self._drained_ns)
        if self._follow.look():
            self._upgrade(lines)
        elif now - self._looked > _SLOW or self._wants_return():
            self._looked = now
            self._set()

    def _wants_return(self) -> bool:
        """Whether a register is free for a place that calls return to."""
        free = MOST - len(self._follow.wanted[:MOST])
        return len(self._armed) < free and bool(self._returned_to(free) - self._armed)

    def _returned_to(self, free: int) -> set[int]:
        """The places that most calls return to, as many as registers are *free*."""
        if not self.summary.durations:
            return set()
        often = self._returns.most_common(free)
        return {address for address, _ in often if address not in self._follow.at}

    def _set(self) -> None:
        """Have breakpoints where they are wanted now: current code, coming code, old, returns."""
        versions = self._follow.wanted[:MOST]
        places = [Place(v.function.address, *v.function.terms, v.function.arity) for v in versions]
        self._armed = self._returned_to(MOST - len(places))
        places += [Place(address) for address in self._armed]
        # Only these run Erlang code: the dirty schedulers run native functions alone.
        tids = [t.tid for t in threads(self._target.pid) if t.role == "normal"]
        self._watch.set(places, tids)
        self._follow.watch(versions)

    def _upgrade(self, lines: CallLines) -> None:
        """Follow code that was loaded: set the breakpoints first, tell it then."""
        self._set()
        for _ in range(_LOOKS):
            if not self._follow.look():  # what has not run by now is watched in time
                break
            self._set()
        self._code.refresh()
        self._callers.clear()
        news = [v for v in self._follow.all if v.gap_ns is not None and id(v) not in self._told]
        for version in sorted(news, key=lambda v: v.end_ns - (v.gap_ns or 0)):
            self._told.add(id(version))
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

    def _tell_missing(self, now_ns: int, *, last: bool = False) -> None:
        """Tell how many calls are missing, where enough of what came beside them is known."""
        for gap, missing in self._gaps.close(now_ns, last=last):
            self.summary.of(gap.function, gap.version).missing = missing
            self.summary.notes.append(
                f"{gap.function} was replaced while it was watched: calls of version "
                f"{gap.version} in its first {gap.most_ns / 1e6:.1f} ms at most are not counted, "
                f"about {missing.calls} ± {missing.error} by those beside"
            )

    def _drain(self, lines: CallLines) -> None:
        """Tell what is in the ring."""
        self._drained_ns = time.monotonic_ns()
        with self._watch.batch() as rows:
            if not len(rows):
                return
            who = self._who(rows)
            for row in rows:
                seen = self._told_of(row, who)
                if seen is not None:
                    self.summary.add(seen)
                    if isinstance(seen, Call):
                        self._gaps.called(seen.function, seen.time_ns)
                    lines.write(seen)
        lines.flush()

    def _who(self, rows: np.ndarray[tuple[int], np.dtype[np.void]]) -> dict[int, str | None]:
        try:
            labels = self._labels.labels(set(rows["process"].tolist()))
        except (ReadRefusedError, NoSuchProcessError):
            return {}
        return {pid: label.who for pid, label in labels.items()}

    def _told_of(self, row: np.void, who: dict[int, str | None]) -> Call | Return | None:
        version = self._follow.at.get(int(row["address"]))
        if version is None:
            return None  # cannot be: only what is followed is watched
        pid = int(row["process"])
        head = (int(row["time_ns"]), self._pids.text(pid) if pid else "?", who.get(pid))
        name = (str(version.function), version.number)
        if row["since_ns"]:
            return Return(*head, *name, int(row["time_ns"]) - int(row["since_ns"]))
        address = int(row["caller"])
        self._returns[address] += 1
        arity = int(row["arity"])
        shapes = self._shaper.shapes(
            row["x"].tolist()[:arity], row["pieces"].reshape(-1, WORDS)
        ) + ["..."] * (arity > _ARGUMENTS)
        return Call(*head, *name, tuple(shapes), *self._caller(address), int(row["tid"]))

    def _caller(self, address: int) -> tuple[str, str]:
        """The function that a call returns to, and its line."""
        if address not in self._callers:
            mfa = self._code.location(address)
            if mfa is not None:
                self._callers[address] = str(mfa), mfa.location
            else:
                start = address == self._exit
                self._callers[address] = ("(start of the process)" if start else "(the VM)", "")
        return self._callers[address]

    def _sum_up(self) -> None:
        """Take over what the kernel counted."""
        self._tell_missing(self._drained_ns, last=True)
        totals = self._watch.totals()
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
    """What is to be said of *functions* at whose addresses other code has run meanwhile."""
    strange = sum(total["strange"] for total in functions)
    why = "other code came to an address that was watched"
    return [f"{strange:,} calls are not counted: {why}"] if strange else []


def _measured(summary: CallSummary, places: Sequence[dict[str, int]]) -> str:
    """What share of the calls was measured, and why not the others."""
    measured = sum(len(t.durations_ns) for t in summary.functions.values())
    lost = sum(t["lost"] for t in places)
    more = f" ({lost:,} returns had no room)" if lost else ""
    return (
        f"durations are those of {measured:,} of {summary.calls:,} calls{more}: the others came "
        "before the place that they return to was known, return elsewhere, ended by an exception "
        "or a tail call of the same function, or had not returned"
    )


def _normal_exit(target: Target) -> int:
    """Where the first function of a process returns to; 0 where the VM hides it."""
    try:
        return target.memory.u64(target.address("beam_normal_exit"))
    except ReadRefusedError:
        return 0
