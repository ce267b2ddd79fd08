# SPDX-License-Identifier: Apache-2.0
"""One run of ``calls`` on an interpreter that was built with function probes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.attach.plan import Item, Plan
from scope_ebpf.beam.code.tables import CodeMap
from scope_ebpf.beam.memory.terms import PidCodec
from scope_ebpf.beam.processes.labels import FRESH, Labels
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.errors import NoSuchProcessError, ReadRefusedError, UsageError
from scope_ebpf.kernel.cost import GUESS
from scope_ebpf.kernel.observers.probe_watch import ProbeWatch
from scope_ebpf.planning import function_probes
from scope_ebpf.results.calls import Call, CallSummary, Return
from scope_ebpf.runs.call_pairing import Pairs
from scope_ebpf.runs.call_run import CallRun
from scope_ebpf.sessions import Planned, addresses_of, open_session

if TYPE_CHECKING:
    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.kernel.observers.session import Session
    from scope_ebpf.runs.call_run import CallOptions
    from scope_ebpf.sinks.calls import CallLines

#: Stands for what the probes do not say.
UNKNOWN = "?"
#: Seconds between two readings of the process table for processes that are not known.
_TABLE_INTERVAL = 1.0


class UsdtCallRun(CallRun):
    """One run, of the functions *chosen*; the probes say who called which, and no more."""

    def __init__(
        self,
        target: Target,
        atoms: Atoms,
        chosen: list[Function],
        options: CallOptions,
    ) -> None:
        super().__init__(target, options, CallSummary(target.as_json(), options.durations))
        self._functions = chosen
        self._pairs = Pairs() if options.durations else None
        self._who = _ProcessNames(target, atoms)
        for function in chosen:
            self.summary.of(str(function), 1)
        texts = [_text(function) for function in chosen]
        self._session = _session(target, returns=options.durations)
        self._probes = ProbeWatch(self._session, texts, options.limit)
        self.summary.notes.append(
            "an interpreter's probes show who calls which function: arguments and caller are ?, "
            "and versions of code count together"
        )

    @property
    def _observer(self) -> ProbeWatch:
        return self._probes

    def _begin(self) -> None:
        self._who.look()

    def _cost(self) -> float:
        return GUESS.total(self._session.hits())

    def _follow_changes(self, lines: CallLines) -> None:
        """Do nothing: the probes compare names, whatever code is loaded."""

    def _drain(self, lines: CallLines) -> None:
        with self._probes.batch() as rows:
            if not len(rows):
                return
            seen = rows[["time_ns", "kind", "class", "tid", "process"]].tolist()
        who = self._who.of({process for *_, process in seen})
        if self._pairs and any(t["lost"] or t["strange"] for t in self._probes.totals()):
            self._pairs = None
            self.summary.notes.append("calls or returns were lost: from then on none was measured")
        for moment, number, returned, tid, process in seen:
            pid = f"<0.{process & 0xFFFFFFFF}.{process >> 32}>" if process else UNKNOWN
            function = self._functions[number]
            name = (pid, who.get(process), str(function), 1)
            if not returned:
                shapes = (UNKNOWN,) * function.arity
                self._add(Call(moment, *name, shapes, UNKNOWN, "", tid), lines)
            if not self._pairs or not process:
                continue
            if not returned:
                self._pairs.called(process, number, moment)
                continue
            for since, until in self._pairs.returned(process, number, moment):
                self._add(Return(until, *name, until - since), lines)
        lines.flush()

    def _add(self, seen: Call | Return, lines: CallLines) -> None:
        self.summary.add(seen)
        lines.write(seen)

    def _sum_up(self) -> None:
        *totals, others = self._probes.totals()
        for function, counted in zip(self._functions, totals, strict=True):
            row = self.summary.of(str(function), 1)
            row.calls += counted["lost"]
            row.lost += counted["lost"]
            row.refused += counted["refused"]
            row.beyond = counted["beyond"] > 0
        notes = self.summary.notes
        if sum(t.beyond for t in self.summary.functions.values()):
            notes.append("calls beyond the limit were not counted: the probes went out with it")
        notes.append(
            f"{others['calls']:,} calls{' and returns' * self.summary.durations} of other "
            "functions passed the same probes, and each cost the VM as much"
        )
        if others["refused"]:
            notes.append(
                f"{others['refused']:,} names could not be read: calls of these may be missing"
            )
        if self.summary.durations:
            measured = sum(len(t.durations_ns) for t in self.summary.functions.values())
            notes.append(
                f"durations are those of {measured:,} of {self.summary.calls:,} calls: the others "
                "ended by an exception, by calling another function as the last thing or by an "
                "instruction that has no probe, came after such a one in the same process, or had "
                "not returned"
            )


class _ProcessNames:
    """Names of processes that are given as texts."""

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._table = ProcessTable(target, IDENTITY)
        self._pids = PidCodec.of(target)
        self._labels = Labels(target, atoms, CodeMap(target, atoms))
        self._terms: dict[int, int] = {}
        self._looked = 0.0

    def look(self) -> None:
        """Read the process table."""
        ids = self._table.snapshot().rows["id"]
        numbers, serials = self._pids.decode(ids)
        words = (numbers | serials << np.uint64(32)).tolist()
        self._terms = dict(zip(words, ids.tolist(), strict=True))
        self._looked = time.monotonic()

    def of(self, words: set[int]) -> dict[int, str | None]:
        """The name of each, by ``number | serial << 32``; those not known yet are left out."""
        try:
            age = time.monotonic() - self._looked
            if age > FRESH or (age > _TABLE_INTERVAL and not words <= self._terms.keys()):
                self.look()
            terms = {word: self._terms[word] for word in words & self._terms.keys()}
            labels = self._labels.labels(terms.values())
        except (ReadRefusedError, NoSuchProcessError):
            return {}
        return {word: labels[term].who for word, term in terms.items() if term in labels}


def _text(function: Function) -> bytes:
    try:
        return function_probes.text(function.module, function.function, function.arity)
    except ValueError:
        raise UsageError(
            f"{str(function)!r}: no probe reports a name with control characters"
        ) from None


def _session(target: Target, *, returns: bool) -> Session:
    sites = function_probes.attachments(target.binary, target.flavor, returns=returns)
    hook = " + ".join(dict.fromkeys(site.name for site in sites))
    plan = Plan((Item("call", "usdt", hook, sites, ""),))
    settings = np.zeros((), events.SETTINGS)
    settings["streamed"] = 1
    planned = Planned(plan, settings, None, (), addresses_of(target, plan))
    return open_session(target, planned, flavor=target.flavor)
