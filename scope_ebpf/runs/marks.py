# SPDX-License-Identifier: Apache-2.0
"""Calls of marked functions of one VM: attach, wait, count."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_ebpf.attach.plan import Attachment
from scope_ebpf.beam.code.functions import Functions
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.beam.elf.entry import ARGUMENTS, START
from scope_ebpf.beam.marks.marker import by_id, find_marker
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.table import IDENTITY, ProcessTable
from scope_ebpf.errors import NothingToAttachError, ReadRefusedError
from scope_ebpf.kernel.observers.mark_watch import PROGRAM, MarkWatch
from scope_ebpf.runs.loop import Loop, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.code.functions import Function, Pattern
    from scope_ebpf.beam.marks.marker import Marker
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError

#: The classes whose markers are watched, by the option ``--class``.
CLASSES = {"callbacks": ("callback",), "all": ("callback", "function")}
#: Functions that are told apart at a time.
_MOST = 1 << 17
_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Marked:
    """What was counted of one function. Durations are in seconds, None where none was measured."""

    function: Function
    calls: int
    returns: int
    failures: int
    #: Calls that were still under way at the end.
    open: int
    mean: float | None


@dataclass(slots=True)
class Marks:
    """What a run has counted; *collided* are functions whose ids cannot be told apart."""

    functions: list[Marked]
    seconds: float
    collided: list[str]
    counts: dict[str, int]


def hook_of(target: Target, marker: Marker) -> Attachment:
    """The breakpoint of *marker*: the cheapest place with both arguments in their registers."""
    entry = target.binary.cheap_entry(marker.address, marker.size)
    if entry.registers[:2] != ARGUMENTS[:2]:
        entry = START
    address = marker.address + entry.shift
    offset = target.binary.file_offset(address)
    return Attachment(PROGRAM, "mark", marker.name, offset, address)


def loaded(target: Target, atoms: Atoms, patterns: Sequence[Pattern]) -> list[Function]:
    """The functions of the VM's current code, those that fit *patterns* if there are any."""
    modules = Modules(target, atoms)
    functions = Functions(target, atoms, modules)
    if patterns:
        found = [f for pattern in patterns for f in functions.find(pattern)]
        return list({str(f): f for f in found}.values())
    found = []
    for code in modules.code(modules.names().values()).values():
        try:
            found += functions.of(code.current) if code.current else []
        except ReadRefusedError:
            continue  # purged meanwhile
    return found


def watch(
    target: Target,
    patterns: Sequence[Pattern],
    kind: str,
    duration: float | None,
    started: Callable[[], None],
) -> tuple[Marks, ScopeError | None]:
    """
    Count every marked call for *duration* seconds; *kind* is one of CLASSES.

    *started* is called when the hooks are in. NothingToAttachError for a VM without the JIT.
    """
    if target.flavor != "jit":
        raise NothingToAttachError(
            f"process {target.pid} runs the interpreter, whose registers are elsewhere; marks are "
            "seen on the JIT (OTP 24 and later on x86_64)"
        )
    atoms = Atoms(target)
    hooks = [hook_of(target, find_marker(target, atoms, name)) for name in CLASSES[kind]]
    known, collided = by_id(loaded(target, atoms, patterns))
    if len(known) > _MOST:
        raise NothingToAttachError(f"{len(known)} functions are more than {_MOST}; name a pattern")
    hend = target.layout.offset("Process", "hend")
    with MarkWatch(target.identity, hooks, list(known), hend) as marks:
        stop = Stop()
        began = time.monotonic()
        marks.start()
        started()
        with stop.on_signals():
            loop = Loop(target.identity, "watched", duration, stop)
            error = loop.run(lambda _now: None, lambda: _PAUSE)
        marks.stop()
        seconds = time.monotonic() - began
        rows = _rows(target, marks, list(known.values()))
        return Marks(rows, seconds, sorted(collided), marks.counts()), error


def _rows(target: Target, marks: MarkWatch, functions: list[Function]) -> list[Marked]:
    """The functions that were called. An open call whose process is gone has failed."""
    stats, under_way = marks.stats(), np.zeros(len(functions), np.int64)
    living = set(ProcessTable(target, IDENTITY).snapshot().rows["pointer"].tolist())
    for process, number in marks.open_calls():
        if process in living:
            under_way[number] += 1
        else:
            stats["failures"][number] += 1
    found = []
    for number in np.flatnonzero(stats["calls"]).tolist():
        row: Any = stats[number]
        calls, returns, failures = (int(row[name]) for name in ("calls", "returns", "failures"))
        mean = int(row["ns"]) / returns / 1e9 if returns else None
        counts = (calls, returns, failures, int(under_way[number]))
        found.append(Marked(functions[number], *counts, mean))
    return sorted(found, key=lambda one: -one.calls)
