# SPDX-License-Identifier: Apache-2.0
"""
Calls of marked functions of one VM: everything counted, or moments within a budget.

In moments, calls that begin in one are followed to its end. What is still under way then was cut
off at its age: Kaplan and Meier's estimate gives durations from both, as far as moments reach.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.marks.marked import VERSION, MarkedCode
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError, ScopeError, UsageError
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.cost import GUESS, CostMeasurement
from scope_ebpf.kernel.observers.mark_watch import PROGRAMS, MarkWatch
from scope_ebpf.planning.marks import mark_hooks
from scope_ebpf.results.marks import Durations, MarkedCalls, Marks
from scope_ebpf.results.server_events import Cost, Times, bucket_of
from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.mark_places import Places
from scope_ebpf.runs.mark_stream import MarkStream
from scope_ebpf.runs.moments import Moments
from scope_ebpf.runs.target_cost import CpuUse, say_braked
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.code.functions import Pattern
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.marks import End, Kind, MarkedCall
    from scope_ebpf.runs.moments import Scale

#: The classes whose markers are watched, by the option ``--class``.
CLASSES = {"callbacks": ("callback",), "all": ("callback", "function")}
#: What a program takes beside the trap, as a part of what a trap takes (bench/marks.py observed, of
#: callbacks that take no message); for what tags take, windows leave a quarter of the budget.
PROGRAM = 0.6
#: Seconds between two looks at new code and at the cost, and between two turns.
_INTERVAL, _TURN = 0.5, 0.05
#: Seconds that a turn takes lines of a stream, so that no more than half a CPU goes to them and a
#: run that must end does; and seconds for lines that are left at the end, and for calls that are.
_SLICE, _LAST = 0.05, 0.5
#: Seconds to wait for the cost of a hit when the run is over.
_COST_PATIENCE = 1.0
#: The part of a CPU from which on hooks change how fast a VM works, and how long a function takes.
_CHANGES = 0.05
#: The part of a function's calls that found no room, from which on the durations of the others are
#: not those of all.
_UNFOLLOWED = 0.01
#: Tags of one callback that are distinguished; the rest is counted as "...".
_MOST_TAGS = 20
#: Versions of the marker that an error names.
_MOST_VERSIONS = 4
_MARK_THEM = (
    "mark a release with `scope-mark DIR --profile callbacks` and start it anew (docs/marking.md)"
)


@dataclass(frozen=True, slots=True)
class MarkOptions:
    """How marked functions are watched."""

    #: Seconds; None for no end.
    duration: float | None
    #: One of CLASSES.
    kind: str = "callbacks"
    #: The part of the VM's CPU that hooks may take, more than 1 for no bound.
    budget: float = 0.01
    #: The part above which a run that counts everything ends itself; None for no bound.
    max_cost: float | None = None


def watch(
    target: Target,
    patterns: Sequence[Pattern],
    options: MarkOptions,
    started: Callable[[], None],
    stream: Callable[[MarkedCall], None] | None = None,
) -> tuple[Marks, ScopeError | None]:
    """
    Watch marked functions until something ends it; *started* is called when calls are counted.

    *stream* gets each call; only where everything is counted.

    Returns what was seen, and the error that ended it early. Raises NothingToAttachError for a VM
    without the JIT or without marked code, UsageError if *patterns* fit nothing that is marked.
    """
    stop, began = Stop(), time.process_time()
    require_target(target.identity, "watched")
    if options.budget > 1:
        run: _Run = _Everything(target, patterns, options, stop, stream)
    else:
        run = _InMoments(target, patterns, options, stop)
    with stop.on_signals(), run:
        run.begin()
        started()
        loop = Loop(target.identity, "watched", options.duration, stop)
        error = loop.run(run.turn, lambda: _TURN)
        run.end()
        found = run.result()
    found.own_seconds = time.process_time() - began
    return found, error


def say_started(pid: int, duration: float | None) -> None:
    """One line on standard error, for programs that wait until calls are counted."""
    if not sys.stderr.isatty():
        length = "" if duration is None else f" for {duration:g} s"
        say(f"scope-trace: watching process {pid}{length}; Ctrl-C ends it")


class _Run(Closing):
    """What both ways of counting do."""

    def __init__(
        self,
        target: Target,
        patterns: Sequence[Pattern],
        options: MarkOptions,
        stop: Stop,
        stream: Callable[[MarkedCall], None] | None = None,
    ) -> None:
        _require_jit(target)
        self._target, self._options, self._stop = target, options, stop
        self._atoms = Atoms(target)
        self._code = MarkedCode(target, self._atoms, patterns)
        ids = self._code.refresh()
        _require_marked(target, self._code, patterns)
        settings, hooks = hooks_of(target, self._atoms, CLASSES[options.kind])
        settings["stream"] = stream is not None
        self._hooks = len(hooks)
        processes = ProcessTable(target, IDENTITY).count()
        self._watch = MarkWatch(target.identity, settings, hooks, ids, processes)
        self._brake = Brake(options.max_cost)
        self._resources = ExitStack()
        self._left_out = 0
        self._places = Places(target, self._atoms)
        self._stream: MarkStream | None = None
        if stream is not None:
            known = self._code.found.functions
            self._stream = MarkStream(target, self._atoms, known, self._places, stream)
        #: Names of tags, by the index of the atom.
        self._names: dict[int, str] = {}
        self._next_look = 0.0
        self._cpu = CpuUse(target.pid)

    def _open(self) -> None:
        self._measurement = self._resources.enter_context(closing(CostMeasurement()))
        self._resources.enter_context(self._watch)

    def close(self) -> None:
        """Take the hooks out, and give everything back."""
        self._resources.close()

    def begin(self) -> None:
        """Begin to count."""
        self._cpu.begin()

    def _hits(self) -> int:
        counts = self._watch.counts()
        return counts["callback"] + counts["function"]

    def _hit(self) -> float:
        """Seconds that a hit takes of the VM's CPU."""
        return (1 + PROGRAM) * (self._measurement.cost() or GUESS).entry

    def _follow_code(self) -> None:
        """Watch functions of code that was loaded meanwhile, and read the names of new tags."""
        with suppress(ReadRefusedError):  # read again at the next look
            self._left_out += self._watch.add(self._code.refresh())
        with suppress(ReadRefusedError):
            self._learn_names()
        with suppress(ReadRefusedError):
            self._places.count(self._watch.callers)

    def _learn_names(self) -> None:
        """Read the names of tags that were not read yet; they go with the VM."""
        wanted = {atom >> 6 for _, _, atom, _ in self._watch.tags() if atom}
        texts = self._atoms.texts(wanted - self._names.keys())
        self._names.update({atom: text for atom, text in texts.items() if text is not None})

    def _ended_processes(self) -> set[int] | None:
        """
        Processes with open calls that are gone; None where that is not known.

        Asked while calls are counted, it is certain that no marker of theirs is still to come.
        Asked later, some may have ended after the last hit that counts.
        """
        try:
            calls = {call.process for call in self._watch.open_calls()}
            table = ProcessTable(self._target, IDENTITY)
            missed = calls - set(table.snapshot().rows["id"].tolist()) if calls else calls
            # A row that was torn is not in the snapshot.
            return {pid for pid in missed if not len(table.one(pid))}
        except ScopeError:
            return None

    def turn(self, now: float) -> None:
        """What is done now and then."""
        raise NotImplementedError

    def end(self) -> None:
        """Count no longer, and take the hooks out."""
        raise NotImplementedError

    def result(self) -> Marks:
        """What was seen; after :meth:`end`."""
        code = self._code.found
        counts = self._watch.counts()
        found = Marks(
            self._target.as_json(),
            self._seconds(),
            len(code.modules),
            sum(mark.functions for mark in code.modules.values()),
            code.profiles,
            sorted(self._rows(), key=lambda one: -one.calls),
            others=self._others(),
            other_hits=counts["unknown"],
            collided=sorted(code.collided),
            lost=counts["no_room"] + counts["unreadable"],
            cost=self._cost(),
        )
        self._note(found)
        return found

    def _seconds(self) -> float:
        raise NotImplementedError

    def _others(self) -> int:
        """Calls of functions that found no slot of their own."""
        raise NotImplementedError

    def _row(self, stats: Any, slot: int, kind: Kind) -> dict[str, Any]:
        """What is counted in another way: calls, error, failures, running, times."""
        raise NotImplementedError

    def _rows(self) -> list[MarkedCalls]:
        stats, counted = self._watch.stats(), self._watch.tags()
        tags, full = self._tags(counted), len(counted) >= events.MARK_SLOTS
        takes_message = self._code.found.takes_message()
        callers = self._places.callers(self._watch.callers)
        found = []
        for number, (slot, is_callback) in self._watch.called().items():
            function = self._code.found.functions.get(number)
            if function is None or str(function) in self._code.found.collided:
                continue
            kind: Kind = "callback" if is_callback else "function"
            row = self._row(stats[slot], slot, kind)
            durations = Durations(row.pop("times"), self._carried(stats[slot]))
            name = (function.module, function.function, function.arity)
            taken, returned = (tags[slot, way] for way in (events.WAY_TAG, events.WAY_RESULT))
            tagged = is_callback and takes_message[number]
            # Some may have found no room.
            some = tagged and sum(taken.values()) < stats[slot]["calls"]
            row["tags"] = None if some else taken
            row["returned"] = None if tagged and full else returned
            row["callers"] = self._callers(callers.get(slot, {}), int(stats[slot]["calls"]))
            found.append(MarkedCalls(*name, kind, durations=durations, **row))
        return found

    def _callers(self, counts: dict[str, int], calls: int) -> dict[str, int] | None:
        """Calls by caller; None if they are not those of all *calls*."""
        return counts if self._places.known and sum(counts.values()) == calls else None

    def _carried(self, stats: Any) -> float:
        """Seconds that hooks took within a call, on average."""
        return int(stats["hits"]) / max(1, int(stats["timed"])) * self._hit()

    def _tags(
        self, counted: list[tuple[int, int, int, int]]
    ) -> dict[tuple[int, int], dict[str, int]]:
        """By slot and way, the atoms that were *counted*; those that are rare together."""
        found: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
        with suppress(ScopeError):  # the VM may have ended
            self._learn_names()
        for slot, way, atom, count in sorted(counted, key=lambda row: -row[3]):
            of = found[slot, way]
            text = self._names.get(atom >> 6, "?") if atom else ""
            name = text if text in of or len(of) < _MOST_TAGS else "..."
            of[name] = of.get(name, 0) + count
        return found

    def _cost(self) -> Cost:
        hits, measured = self._hits(), self._measurement.cost(_COST_PATIENCE)
        seconds = hits * (1 + PROGRAM) * measured.entry if measured else None
        share = (
            share_of(seconds, self._cpu.seconds)
            if seconds is not None and self._cpu.seconds
            else None
        )
        return Cost(self._hooks, hits, seconds, share)

    def _note(self, found: Marks) -> None:
        if self._left_out:
            found.notes.append(
                f"{self._left_out} functions of code that was loaded meanwhile were not watched"
            )
        if self._code.found.unknown:
            found.notes.append(
                f"{len(self._code.found.unknown)} modules were marked by another version of "
                "scope-mark: their calls are not seen"
            )
        if found.collided:
            found.notes.append(
                f"{len(found.collided)} functions are left out: their ids are the same"
            )
        if untold := self._watch.counts()["untold"]:
            found.notes.append(f"{untold} begins or ends of calls had no room in the stream")
        if found.others:
            found.notes.append(
                f"{found.others} calls were of more functions than the {events.MARK_SLOTS - 1} "
                "that are counted apart: name a pattern"
            )


class _Everything(_Run):
    """Counts every call."""

    #: Lines of the ring that were dropped when the run ended, and calls that were not reported.
    _dropped = _untold = 0

    def begin(self) -> None:
        """Attach the hooks, then count."""
        self._watch.attach()
        super().begin()
        self._began = self._watch.open_window()

    def turn(self, now: float) -> None:
        """Follow new code, and end the run if it costs too much."""
        if now >= self._next_look:
            self._next_look = now + _INTERVAL
            self._look(now)
        if self._stream is not None and not self._stop.reason:
            self._stream.take(self._watch.lines(), _SLICE)

    def _look(self, now: float) -> None:
        self._cpu.update()
        hits = self._hits()
        if self._brake.add(now, lambda: hits * self._hit(), self._cpu.seconds):
            say_braked(self._brake)
            self._stop.ask("cost")
        else:
            self._follow_code()

    def end(self) -> None:
        """Count no longer; what was open of processes that were gone by then has failed."""
        ended = self._ended_processes()
        self._ended = self._watch.close_window()
        self._cpu.update()
        self._watch.detach()
        if self._stream is not None:
            self._end_stream(self._stream, ended)
        self._open_at_end = None if ended is None else self._still_open(ended)

    def _end_stream(self, stream: MarkStream, ended: set[int] | None) -> None:
        """Tell what there is time for, and count the rest."""
        stream.take(self._watch.lines(), _LAST)
        self._dropped = self._watch.drop_lines()
        self._untold = stream.end(self._ends(ended), _LAST)

    def _note(self, found: Marks) -> None:
        super()._note(found)
        if self._dropped:
            found.notes.append(
                f"{self._dropped} begins or ends of calls were not read before the run ended"
            )
        if self._untold:
            found.notes.append(
                f"{self._untold} calls whose end was not read have no line: the run had ended"
            )

    def _ends(self, ended: set[int] | None) -> dict[tuple[int, int], End]:
        """What became of calls that are open, by process and when they began."""
        if ended is None:
            return {}
        return {
            (call.process, call.began_ns): "running"
            if call.process not in ended
            else "failed"
            if call.is_callback
            else "left"
            for call in self._watch.open_calls()
        }

    def _still_open(self, ended: set[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Open calls by slot: those that may be under way, and callbacks of *ended* processes."""
        running, failed = np.zeros((2, events.MARK_SLOTS), np.int64)
        for call in self._watch.open_calls():
            if call.process not in ended:
                running[call.slot] += 1
            elif call.is_callback:
                failed[call.slot] += 1
        return running, failed

    def _seconds(self) -> float:
        return (self._ended - self._began) / 1e9

    def _row(self, stats: Any, slot: int, kind: Kind) -> dict[str, Any]:
        times = Times(stats["durations"].astype(np.int64), int(stats["ns"]) / 1e9)
        if stats["unfollowed"] >= _UNFOLLOWED * stats["calls"] > 0:
            times = times.unknown()
        # A function that is no callback may end in a tail call, of which there is no marker.
        ends = None
        if kind == "callback" and not stats["unfollowed"]:
            ends = self._open_at_end
        return {
            "calls": int(stats["calls"]),
            "error": 0.0,
            "failures": int(stats["failures"]) + int(ends[1][slot]) if ends else None,
            "running": int(ends[0][slot]) if ends else None,
            "timed": int(stats["timed"]),
            "times": times,
        }

    def _others(self) -> int:
        return int(self._watch.stats()[0]["calls"])


class _InMoments(_Run):
    """Counts calls in moments, so that hooks keep within the budget."""

    def _open(self) -> None:
        super()._open()
        plan = self._options.budget, self._options.duration
        self._moments = Moments(self._target, self._watch, plan, self._hits, self._window)
        #: Whether it was known of each window which calls were under way at its end.
        self._followed = True
        #: What was cut off, by slot.
        self._cut = np.zeros((events.MARK_SLOTS, events.SERVER_BUCKETS), np.int64)

    def begin(self) -> None:
        """Begin; the first window comes later."""
        super().begin()
        self._moments.begin()

    def turn(self, now: float) -> None:
        """Follow new code; open a window, if one is due and can be afforded."""
        if now >= self._next_look:
            self._next_look = now + _INTERVAL
            self._follow_code()
        if not self._moments.is_due(now):
            return
        self._cpu.update()
        hit = self._hit()
        self._moments.look(now, self._cpu.seconds, self._hits() * hit, hit)

    def _window(self, _opened: int, closed: int) -> NDArray[np.int64]:
        """Calls by slot in all windows until now; what is under way is cut off."""
        ended = self._ended_processes()
        self._followed &= ended is not None
        for call in self._watch.open_calls():
            if call.process in (ended or ()):
                continue  # it has failed
            age = max(0, closed - call.began_ns) / 1e9
            self._cut[call.slot, bucket_of(age)] += 1
        self._watch.forget_open()
        return self._watch.stats()["calls"].astype(np.int64)

    def end(self) -> None:
        """Take out what is still attached."""
        self._moments.end()
        self._cpu.update()
        self._watch.detach()
        self._scale = self._scaled() if self._moments.enough else None

    def _scaled(self) -> Scale:
        """How counts are scaled up: also hits of markers that are not counted slow the VM down."""
        hit = self._hit()
        changed = self._moments.rate * hit >= _CHANGES or self._moments.slows(
            self._cpu.seconds, hit
        )
        return self._moments.scale(changed=changed)

    def _rows(self) -> list[MarkedCalls]:
        return super()._rows() if self._scale else []

    def _others(self) -> int:
        factor = self._scale.factor if self._scale else 0.0
        return round(int(self._watch.stats()[0]["calls"]) * factor)

    def _seconds(self) -> float:
        return self._moments.seconds

    def _row(self, stats: Any, slot: int, kind: Kind) -> dict[str, Any]:
        if (scale := self._scale) is None:
            raise ValueError("too few windows: no figure")
        observed = self._moments.observed
        hits = int(stats["hits"]) + int(stats["timed"])
        times = Times(
            stats["durations"].astype(np.int64),
            int(stats["ns"]) / 1e9,
            self._cut[slot],
            self._moments.longest,
            0.0,
        )
        # Calls that found no room, or ended in a tail call, did not take longer than a window.
        unknown = kind != "callback" or stats["unfollowed"] or scale.by_work or not self._followed
        changed = hits / observed * self._hit() >= _CHANGES
        return {
            "calls": round(int(stats["calls"]) * scale.factor),
            "error": self._moments.error(scale, slot),
            "failures": None,
            "running": None,
            "timed": int(stats["timed"]),
            "times": times.unknown() if unknown or changed else times,
        }

    def result(self) -> Marks:
        """What was counted, scaled up to the whole run."""
        found = super().result()
        windows = self._moments.windows
        found.sampling_ratio = self._moments.observed / found.seconds
        if self._scale is None:
            found.notes.append(self._moments.why)
            return found
        for row in found.functions:
            for counts in (row.tags or {}, row.returned or {}, row.callers or {}):
                counts.update({k: round(n * self._scale.factor) for k, n in counts.items()})
        found.notes.append(
            f"calls were seen in {len(windows)} windows of {self._moments.observed:.3g} s "
            "together: rates are estimates, failures are not known"
        )
        return found


def hooks_of(
    target: Target, atoms: Atoms, classes: Sequence[str]
) -> tuple[NDArray[np.void], list[Attachment]]:
    """Settings and hooks of the markers of *classes*; ReadRefusedError if one is not certain."""
    settings = np.zeros((), events.MARK_SETTINGS)
    settings["tgid"] = target.pid
    settings["process_id"] = target.layout.offset("Process", "common.id")
    settings["map_subtag"] = target.layout.facts.map_subtag
    settings["process_hend"] = target.layout.offset("Process", "hend")
    found = mark_hooks(target, atoms, {name: PROGRAMS[name] for name in classes}, "mark")
    settings["frames"] = found.frames
    settings["function_in_register"] = found.in_register
    return settings, list(found.attachments)


def _require_jit(target: Target) -> None:
    if target.flavor != "jit":
        raise NothingToAttachError(
            f"process {target.pid} runs the interpreter, whose registers are elsewhere; marks are "
            "seen on the JIT (OTP 24 and later on x86_64)"
        )


def _require_marked(target: Target, code: MarkedCode, patterns: Sequence[Pattern]) -> None:
    if not code.found.modules and code.found.unknown:
        raise NothingToAttachError(_other_version(target.pid, code))
    if not code.found.modules:
        raise NothingToAttachError(
            f"no code that process {target.pid} has loaded is marked: {_MARK_THEM}"
        )
    if not code.found.functions:
        texts = ", ".join(pattern.text for pattern in patterns)
        raise UsageError(
            f"nothing that fits {texts} is in the {len(code.found.modules)} marked modules that "
            f"process {target.pid} has loaded"
        )


def _other_version(pid: int, code: MarkedCode) -> str:
    versions = "".join(f"{version}; " for version in sorted(code.found.versions)[:_MOST_VERSIONS])
    count = len(code.found.unknown)
    were = "modules were" if count > 1 else "module was"
    return (
        f"{count} {were} marked by another version of scope-mark ({versions}{VERSION} is read) in "
        f"process {pid}: mark them again and start it anew (docs/marking.md)"
    )
