# SPDX-License-Identifier: Apache-2.0
"""One run that counts calls of marked functions: what both ways of counting do."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scope_ebpf import events
from scope_ebpf.beam.marks.marked import MarkedCode
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.budget.brake import Brake, share_of
from scope_ebpf.errors import ReadRefusedError, ScopeError
from scope_ebpf.kernel.closing import Closing
from scope_ebpf.kernel.cost import GUESS, CostMeasurement
from scope_ebpf.kernel.observers.mark_watch import MarkWatch
from scope_ebpf.results.marks import Durations, MarkedCalls, Marks
from scope_ebpf.results.server_events import Cost
from scope_ebpf.runs.mark_hooks import CLASSES, PROGRAM, hooks_of, require_jit, require_marked
from scope_ebpf.runs.mark_places import Places
from scope_ebpf.runs.mark_stream import MarkStream
from scope_ebpf.runs.target_cost import CpuUse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.code.functions import Pattern
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.marks import Kind, MarkedCall
    from scope_ebpf.runs.loop import Stop

#: Seconds between two looks at new code and at the cost.
INTERVAL = 0.5
#: Seconds to wait for the cost of a hit when the run is over.
_COST_PATIENCE = 1.0
#: Tags of one callback that are distinguished; the rest is counted as "...".
_MOST_TAGS = 20


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


class MarkRun(Closing):
    """What both ways of counting do."""

    def __init__(
        self,
        target: Target,
        patterns: Sequence[Pattern],
        options: MarkOptions,
        stop: Stop,
        stream: Callable[[MarkedCall], None] | None = None,
    ) -> None:
        require_jit(target)
        self._target, self._options, self._stop = target, options, stop
        self._atoms = Atoms(target)
        self._code = MarkedCode(target, self._atoms, patterns)
        ids = self._code.refresh()
        require_marked(target, self._code, patterns)
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
