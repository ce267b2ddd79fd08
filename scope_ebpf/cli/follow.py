# SPDX-License-Identifier: Apache-2.0
"""Summaries of one VM that follow each other, as vmstat has them for a host."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, TextIO

from scope_ebpf.kernel.cost import CostMeasurement
from scope_ebpf.kernel.observers.program_pool import ProgramPool
from scope_ebpf.runs.budgeted import BudgetedTrace, BudgetOptions
from scope_ebpf.runs.terminal import alone, announce, open_output, output_error
from scope_ebpf.sinks.turns import TurnLines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.errors import ScopeError
    from scope_ebpf.results.summary import Summary

#: Nice value of the process that measures the cost of a hit beside the VM.
_NICE = 10


def follow(
    target: Target, wanted: tuple[str, ...], arguments: argparse.Namespace, budget: float
) -> None:
    """
    Print a summary of each ``--interval``, within *budget*, until something ends it.

    Each has hooks of its own, which take some tenths of a second to go in and out: that time is in
    none of them. Raises the error that ended it, if one did.
    """
    pool = ProgramPool(1, float("inf"))
    with (
        contextlib.closing(CostMeasurement(_NICE)) as measurement,
        contextlib.ExitStack() as ending,
        open_output(arguments.output, force=arguments.force) as output,
        alone(target.pid) as notes,
    ):
        ending.callback(pool.expire, everything=True)
        announce(f"process {target.pid} within {budget * 100:g}% of its CPU; Ctrl-C ends it")
        lines = TurnLines(output)
        for seconds in _turns(arguments):
            options = BudgetOptions(
                seconds, budget, arguments.via, arguments.slow_call, announced=False
            )
            trace = BudgetedTrace(target, wanted, options, measurement, pool)
            trace.notes += notes
            error: ScopeError | None = trace.run()
            summary = trace.summary()
            _write(summary, lines, output, arguments)
            if error:
                raise error
            if summary.stopped_because != "duration":
                break


def _turns(arguments: argparse.Namespace) -> Iterator[float]:
    """The seconds of each summary: as many as ``--count`` wants and ``--duration`` has room for."""
    each, left = arguments.interval, arguments.duration or float("inf")
    for _ in itertools.islice(itertools.count(), arguments.count):
        if left <= 0:
            return
        yield min(each, left)
        left -= each


def _write(
    summary: Summary, lines: TurnLines, output: TextIO, arguments: argparse.Namespace
) -> None:
    try:
        if arguments.format == "text":
            lines.write(summary)
        else:
            output.write(json.dumps(summary.as_json()) + "\n")
            output.flush()
    except BrokenPipeError:
        raise
    except OSError as broken:
        raise output_error(broken, arguments.output) from broken
