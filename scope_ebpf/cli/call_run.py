# SPDX-License-Identifier: Apache-2.0
"""One run of ``calls``: breakpoints set, calls told, upgrades followed, until something ends it."""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from typing import TYPE_CHECKING

from scope_ebpf.beam.code import CodeMap
from scope_ebpf.beam.follow import Follow
from scope_ebpf.beam.pieces import MAP_24, MAP_27, WORDS, Shaper
from scope_ebpf.beam.terms import PidCodec
from scope_ebpf.beam.threads import threads
from scope_ebpf.calls import Call, CallSummary, Return, Upgrade
from scope_ebpf.cli.surroundings import stop_signals
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, ScopeError, TargetEndedError
from scope_ebpf.kernel.breakpoints import MOST
from scope_ebpf.kernel.call_watch import CallWatch, Place
from scope_ebpf.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from scope_ebpf.beam.atoms import Atoms
    from scope_ebpf.beam.discover import Target
    from scope_ebpf.beam.functions import Function, Functions
    from scope_ebpf.beam.modules import Modules
    from scope_ebpf.sinks.calls import CallLines

#: Seconds. New code is looked for in each turn, and runs some ms after it can be seen.
TURN = 0.004
#: How often threads and the places that calls return to are looked at again.
_SLOW = 1.0
#: Arguments of which the kernel side keeps the terms.
_ARGUMENTS = 8


class CallRun:
    """One run, of the functions *chosen*, for *duration* seconds (None: until Ctrl-C)."""

    def __init__(
        self,
        target: Target,
        found: tuple[Atoms, Modules, Functions],
        chosen: list[Function],
        *,
        limit: int,
        duration: float | None,
        durations: bool,
    ) -> None:
        atoms, modules, functions = found
        self._target = target
        self._limit = limit
        self._duration = duration
        self._code = CodeMap(target, atoms)
        self._labels = Labels(target, atoms, self._code)
        self._pids = PidCodec.of(target)
        self._shaper = Shaper(target, atoms)
        self._follow = Follow(functions, modules, chosen)
        self._callers: dict[int, tuple[str, str]] = {}
        self._returns: Counter[int] = Counter()
        self._exit = _normal_exit(target)
        self._armed_returns = False
        self._told = {id(version) for version in self._follow.all}
        self._stop = ""
        self.summary = CallSummary(target.as_json(), durations)
        for function in chosen:
            self.summary.of(str(function), 1)
        self._watch = CallWatch(
            limit,
            target.layout.offset("Process", "hend"),
            MAP_27 if target.layout.release >= 27 else MAP_24,
        )

    def run(self, lines: CallLines, started: Callable[[], None]) -> ScopeError | None:
        """Watch until something ends it; the error, if it was one. Calls *started* first."""
        pidfd = os.pidfd_open(self._target.pid)
        error: ScopeError | None = None
        try:
            with self._watch as watch, stop_signals(self._ask_to_stop):
                self._set()
                watch.open(on=True)
                start = time.monotonic()
                started()
                try:
                    self._turns(pidfd, start, lines)
                except NoSuchProcessError:
                    self._ask_to_stop("target ended")
                finally:
                    watch.open(on=False)
                    self.summary.duration_seconds = time.monotonic() - start
                watch.detach()
                self._drain(lines)
                self._sum_up()
        finally:
            os.close(pidfd)
        if self._stop == "target ended":
            error = TargetEndedError(f"process {self._target.pid} ended while it was watched")
        self.summary.stopped_because = self._stop
        return error

    def _ask_to_stop(self, reason: str) -> None:
        self._stop = self._stop or reason

    def _turns(self, pidfd: int, started: float, lines: CallLines) -> None:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        slow = started
        while not self._stop:
            if ended.poll(TURN * 1000):
                self._ask_to_stop("target ended")
                return
            now = time.monotonic()
            self._drain(lines)
            if self._follow.look():
                self._upgrade(lines)
            elif now - slow > _SLOW or self._wants_return():
                slow = now
                self._set()
            if self._watch.taken() >= self._limit:
                self._ask_to_stop(f"the limit of {self._limit:,} calls was reached")
            if self._duration is not None and now - started >= self._duration:
                self._ask_to_stop("duration")

    def _wants_return(self) -> bool:
        """Whether the first calls have told where they return to, and nothing stands there yet."""
        return self.summary.durations and bool(self._returns) and not self._armed_returns

    def _set(self) -> None:
        """Have breakpoints where they are wanted now: current code, coming code, old, returns."""
        versions = self._follow.wanted[:MOST]
        places = [Place(v.function.address, *v.function.terms, v.function.arity) for v in versions]
        if self.summary.durations and self._returns:
            # Those that most calls return to, as many as registers are free.
            often = self._returns.most_common(MOST - len(places))
            places += [Place(address) for address, _ in often if address not in self._follow.at]
            self._armed_returns = True
        # Only these run Erlang code: the dirty schedulers run native functions alone.
        tids = [t.tid for t in threads(self._target.pid) if t.role == "normal"]
        self._watch.set(places, tids)
        self._follow.watch(versions)

    def _upgrade(self, lines: CallLines) -> None:
        """Follow code that was loaded: set the breakpoints first, tell it then."""
        self._set()
        self._code.refresh()
        self._callers.clear()
        for version in self._follow.all:
            if version.gap_ns is None or id(version) in self._told:
                continue
            self._told.add(id(version))
            name, number = str(version.function), version.number
            lines.write(Upgrade(time.monotonic_ns(), name, number, version.gap_ns))
            self.summary.of(name, number)
            if version.gap_ns:
                self.summary.notes.append(
                    f"{name} was replaced while it was watched: calls of version {number} in its "
                    f"first {version.gap_ns / 1e6:.1f} ms at most are not counted"
                )
        lines.flush()
        left_out = self._follow.wanted[MOST:]
        if left_out:
            self.summary.notes.append(
                f"the CPU has {MOST} debug registers, so calls of "
                + ", ".join(f"{v.function} version {v.number}" for v in left_out)
                + " are not counted any more"
            )

    def _drain(self, lines: CallLines) -> None:
        """Tell what is in the ring."""
        with self._watch.batch() as rows:
            if not len(rows):
                return
            who = self._who(rows)
            for row in rows:
                seen = self._told_of(row, who)
                if seen is not None:
                    self.summary.add(seen)
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
        if self.summary.durations:
            notes.append(_measured(self.summary, elsewhere))
        if any(t["beyond"] for t in elsewhere):
            notes.append("a place that calls return to is shared by others, and was left early")


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
