# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked callbacks of each target, counted in windows by a thread of its own.

The hooks are those of ``scope-trace marks``. They are attached for a window at a random time; what
hooks and thread take is a share of the target's budget, so windows of a busy VM are rare or short.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scope_ebpf.beam.marks.marked import MarkedCode
from scope_ebpf.beam.memory.look_limits import LookLimits, limited
from scope_ebpf.beam.memory.process_memory import Memory, cpu_seconds
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.daemon.looks.owners import in_turns
from scope_ebpf.daemon.notify import say
from scope_ebpf.daemon.readings.thread import ReadingThread
from scope_ebpf.errors import NoAnswerError, NoSuchProcessError, ReadRefusedError, ScopeError
from scope_ebpf.kernel.observers.mark_watch import MarkWatch
from scope_ebpf.metrics.marks import Calls, MarksReading, MarkSums
from scope_ebpf.runs.mark_hooks import PROGRAM, hooks_of
from scope_ebpf.runs.moments import error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.daemon.config import Config
    from scope_ebpf.daemon.hooks import TargetHooks
    from scope_ebpf.daemon.looks.owners import Owner

#: The part of a target's budget that windows may take, of its CPU and of the daemon's.
SHARE = 0.15
#: Seconds of a window, and mean seconds between two of them at least; seconds of the budget that
#: one window may use up.
WINDOW, INTERVAL, _SAVED = 0.1, 2.0, 30.0
#: VMs whose calls are counted at a time: the maps of each are 10 MB of the kernel's memory.
MOST = 8
#: Seconds for which a window lasts longer, at most, while it is asked which processes have ended;
#: processes of which that is asked.
_GRACE, _MOST_OPEN = 1.0, 256
#: Windows of which the error is that of the last ones.
_LAST = 12
#: Seconds between two readings of what code is loaded, where there is marked code and where not.
_CODE, _UNMARKED = 10.0, 60.0
#: Limits of one reading of code: bytes of memory, system calls, seconds of CPU, seconds of time.
_DATA, _CALLS, _CPU, _WALL = 128 << 20, 100_000, 2.0, 30.0
#: Seconds until the next try after a failure; between two passes, also while nothing is counted.
_RETRY, _PASS, _OFF = 60.0, 0.1, 2.0
#: Seconds between two looks at whether a window has used up its hits.
_STEP = 0.005


class Subject(Protocol):
    """A target whose marked callbacks are counted: a ``watch.Watch``."""

    @property
    def target(self) -> Target:
        """The VM."""

    @property
    def owner(self) -> Owner:
        """Whose process it is."""

    @property
    def hooks(self) -> TargetHooks:
        """Its hooks, whose resources these share."""

    @property
    def income(self) -> float:
        """Seconds of CPU a second that observing it may cost."""

    def publish_marks(self, found: MarksReading, spent: float) -> None:
        """Take what the windows saw, and the seconds of the VM's CPU that they took since."""

    def fail(self, error: ScopeError) -> None:
        """Take why the target must be dropped."""


class Window(NamedTuple):
    """
    One window: its seconds, calls by function, and the hits that it took, also around it.

    ``left_out`` are marked functions, loaded since, of which no call is counted.
    """

    seconds: float
    calls: dict[str, Calls]
    hits: int
    left_out: int = 0


class MarkedSight:
    """
    The hooks and counts of one target; a target without marked code has neither.

    Attributes:
        hit: seconds of its CPU that one hit takes.
    """

    def __init__(self, target: Target, hooks: TargetHooks) -> None:
        # A separate Memory: searching for tables tries addresses, which are not failed reads.
        self._target = replace(target, memory=Memory(target.pid, target.identity.process))
        self._resources = hooks.resources
        self.hit = (1 + PROGRAM) * hooks.resources.cost.entry
        self._atoms = Atoms(self._target)
        self._code = MarkedCode(self._target, self._atoms)
        self._open = ExitStack()
        self._watch: MarkWatch | None = None
        self._before: dict[str, Calls] = {}
        #: Calls that failed with their process, by function: the kernel side has not counted them.
        self._ended: Counter[str] = Counter()
        self._hits = self._left_out = 0

    def refresh(self, *, room: bool) -> bool:
        """
        Read which code is marked; whether there is any. Raises ScopeError.

        Only with *room* programs are loaded for it.
        """
        fresh = self._code.refresh()
        if self._watch is not None:
            self._left_out += self._watch.add(fresh)
        elif self._code.found.functions and room:
            if self._target.flavor != "jit":
                raise ReadRefusedError("marks are seen on the JIT only")
            settings, hooks = hooks_of(self._target, self._atoms, ("callback",))
            ids = self._code.found.about(self._code.found.functions)
            # Without the number of processes: in a window those that it has room for are enough.
            attacher = self._resources.attacher
            watch = MarkWatch(self._target.identity, settings, hooks, ids, attacher=attacher)
            self._watch = self._open.enter_context(watch)
        return bool(self._code.found.functions)

    def window(self, seconds: float, hits: int) -> Window:
        """Count for *seconds*, or for *hits*; after :meth:`refresh` has loaded programs."""
        watch = self._watch
        assert watch is not None  # noqa: S101 - as it says
        watch.attach()
        try:
            opened = watch.open_window(seconds + _GRACE, hits)
            end = opened + int(seconds * 1e9)
            while (left := end - time.monotonic_ns()) > 0 and not watch.is_over():
                time.sleep(min(left / 1e9, _STEP))
            # While calls are counted, it is certain that no marker of theirs is still to come.
            gone = set() if watch.is_over() else self._gone(watch)
            closed = watch.close_window()
        finally:
            watch.release()
        counts = watch.counts()
        before, self._hits = self._hits, counts["callback"] + counts["function"]
        failed = Counter(
            call.slot for call in watch.open_calls() if call.is_callback and call.process in gone
        )
        calls = self._since(failed)
        watch.forget_open()
        return Window(max(1, closed - opened) / 1e9, calls, self._hits - before, self._left_out)

    def _gone(self, watch: MarkWatch) -> set[int]:
        """Processes with open calls that have ended, of the first ones."""
        processes = {call.process for call in watch.open_calls()}
        table = ProcessTable(self._target, IDENTITY)
        return {pid for pid in sorted(processes)[:_MOST_OPEN] if not len(table.one(pid))}

    def _since(self, failed: Mapping[int, int]) -> dict[str, Calls]:
        """Calls since the last time, by function, with those that *failed* by slot."""
        assert self._watch is not None  # noqa: S101 - a window was open
        stats, known = self._watch.stats(), self._code.found
        now: dict[str, Calls] = {}
        for number, (slot, _) in self._watch.called().items():
            name = str(known.functions.get(number, ""))
            if name and name not in known.collided:
                one = stats[slot]
                calls, failures, timed, ns = (
                    int(one[field]) for field in ("calls", "failures", "timed", "ns")
                )
                self._ended[name] += failed.get(slot, 0)
                now[name] = Calls(calls, failures + self._ended[name], timed, ns / 1e9)
        now[""] = Calls(int(stats[0]["calls"]))  # of functions that found no slot
        before, self._before = self._before, now
        return {name: one.plus(before.get(name, Calls()), -1.0) for name, one in now.items()}

    def close(self) -> None:
        """Take the hooks out, and give everything back."""
        self._open.close()


@dataclass(slots=True)
class _State:
    """The windows of one target, as *series* series at most."""

    series: int
    #: They outlast what counts: a VM could have it made anew, and so any number of new series.
    sums: MarkSums
    sight: MarkedSight | None = None
    #: When the next window is due, and the next reading of code, in seconds of the clock.
    due: float = 0.0
    code_due: float = 0.0
    is_marked: bool = False
    #: Seconds and calls of the last windows.
    last: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_LAST))
    #: Seconds of the VM's CPU that hits took so far, and those of them that the VM knows of.
    spent: float = 0.0
    published: float = 0.0
    refused: str = ""

    def close(self) -> None:
        """Take the hooks out."""
        if self.sight:
            self.sight.close()
            self.sight = None


@dataclass(slots=True)
class MarkWindows(ReadingThread):
    """
    Counts marked calls of *subjects*, which returns the targets of this moment, until closed.

    Unexpected errors are counted in *errors* under ``snapshot``.
    """

    NAME = "marks"
    subjects: Callable[[], Sequence[Subject]]
    config: Callable[[], Config]
    errors: Counter[str]
    clock: Callable[[], float] = time.monotonic
    make: Callable[[Target, TargetHooks], MarkedSight] = MarkedSight
    _states: dict[Subject, _State] = field(default_factory=dict)
    # At random: work with the period of the windows would be seen at the same point.
    _draw: random.Random = field(default_factory=random.Random)

    def look(self) -> None:
        """Open a window of each target that is due; without series of none."""
        series, subjects = self.config().marks, self.subjects()
        for subject, state in list(self._states.items()):
            if state.series != series or subject not in subjects:
                state.close()
                del self._states[subject]
                _publish(subject, state, MarksReading())
        for subject in in_turns(subjects if series else (), lambda subject: subject.owner):
            state = self._states.setdefault(subject, _State(series, MarkSums(series)))
            if self.clock() >= state.due and not self._ended.is_set():
                self._look_at(subject, state)

    def _run(self) -> None:
        try:
            while not self._ended.wait(_PASS if self.config().marks else _OFF):
                self.look()
        finally:
            for state in self._states.values():
                state.close()

    def _look_at(self, subject: Subject, state: _State) -> None:
        """Open one window of one target."""
        began, pause, before = cpu_seconds(), _RETRY, state.spent
        try:
            self._follow_code(subject, state)
            if state.is_marked:
                self._count(subject, state)
                pause = INTERVAL
            else:
                pause = _UNMARKED
            subject.target.identity.check()
        except NoSuchProcessError:
            pass  # the loop drops it
        except NoAnswerError as error:
            subject.fail(error)
        except Exception as error:  # noqa: BLE001 - one target must not take the others along
            if not self._ended.is_set():
                self._failed(subject, state, error)
        spent = cpu_seconds() - began + state.spent - before
        if state.is_marked:
            pause = max(pause, spent / (SHARE * subject.income))
        state.due = self.clock() + pause * self._draw.uniform(0.5, 1.5)

    def _follow_code(self, subject: Subject, state: _State) -> None:
        """Read which code is marked, where that is due."""
        if state.sight is None:
            state.sight, state.code_due = self.make(subject.target, subject.hooks), 0.0
        if self.clock() < state.code_due:
            return
        what = f"looking for marked code of process {subject.target.pid}"
        others = sum(one.is_marked for one in self._states.values() if one is not state)
        room = others < MOST
        with limited(LookLimits(what, data=_DATA, calls=_CALLS, cpu=_CPU, wall=_WALL)):
            is_marked = state.sight.refresh(room=room)
        state.is_marked = is_marked and room
        if is_marked and not room:
            _refuse(subject, state, f"marked code of {MOST} VMs at most is observed at a time")
            _publish(subject, state, MarksReading(refused=state.refused))
        state.code_due = self.clock() + (_CODE if state.is_marked else _UNMARKED)

    def _count(self, subject: Subject, state: _State) -> None:
        assert state.sight is not None  # noqa: S101 - it is marked
        most = int(SHARE * subject.income * _SAVED / state.sight.hit)
        found = state.sight.window(WINDOW, max(1, most))
        state.spent += found.hits * state.sight.hit
        calls = round(sum(one.calls for one in found.calls.values()))
        state.last.append((found.seconds, calls))
        error = error_of([size for size, _ in state.last], [count for _, count in state.last])
        reading = state.sums.add(found.calls, found.seconds, self.clock(), error)
        left_out = found.left_out
        _refuse(subject, state, f"{left_out} marked functions found no room" if left_out else "")
        _publish(subject, state, replace(reading, refused=state.refused))

    def _failed(self, subject: Subject, state: _State, error: Exception) -> None:
        """Note a failure, and begin anew at the next try."""
        known = isinstance(error, ScopeError)
        why = str(error) if known else repr(error)
        if not known:
            self.errors["snapshot"] += 1
        _refuse(subject, state, why)
        state.is_marked = False
        state.close()
        _publish(subject, state, MarksReading(refused=why))


def _refuse(subject: Subject, state: _State, why: str) -> None:
    """Keep why calls are not counted, "" if they are; the first reason is logged."""
    if why and not state.refused:
        say(logging.WARNING, "marks not read", pid=subject.target.pid, why=why)
    state.refused = why


def _publish(subject: Subject, state: _State, found: MarksReading) -> None:
    """Let *subject* show *found*; seconds are added to those of states that it had before."""
    spent, state.published = state.spent - state.published, state.spent
    subject.publish_marks(found, spent)
