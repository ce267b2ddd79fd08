# SPDX-License-Identifier: Apache-2.0
"""Calls of marked functions of one VM: everything counted, or moments within a budget."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from scope_ebpf.runs.loop import Loop, Stop, require_target
from scope_ebpf.runs.mark_everything import Everything
from scope_ebpf.runs.mark_windows import InMoments
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scope_ebpf.beam.code.functions import Pattern
    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.marks import MarkedCall, Marks
    from scope_ebpf.runs.mark_run import MarkOptions, MarkRun

#: Seconds between two turns.
_TURN = 0.05


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
        run: MarkRun = Everything(target, patterns, options, stop, stream)
    else:
        run = InMoments(target, patterns, options, stop)
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
