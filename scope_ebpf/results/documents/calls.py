# SPDX-License-Identifier: Apache-2.0
"""The lines of ``calls --format jsonl``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target


class CallLine(TypedDict):
    """One call."""

    #: Seconds since 1970.
    time: float
    event: Literal["call"]
    #: The calling process, and its name; null if it is not known.
    pid: str
    who: str | None
    #: M:F/A.
    function: str
    #: Number of the code's version, from 1.
    version: int
    #: The function that the call returns to.
    caller: str
    #: File and line there; may be empty.
    line: str
    #: The scheduler thread.
    tid: int
    #: The shape of each argument; "..." for those that were not captured.
    arguments: list[str]


class ReturnLine(TypedDict):
    """The return of a call."""

    time: float
    event: Literal["return"]
    pid: str
    who: str | None
    function: str
    version: int
    duration_seconds: float


class CodeLine(TypedDict):
    """Other code of a function was seen."""

    time: float
    event: Literal["code"]
    function: str
    version: int
    #: The longest time that it may have run unwatched; null where that is not known.
    gap_seconds: float | None


class MissingCalls(TypedDict):
    """An estimate of calls that were not counted."""

    calls: int
    #: By how many calls the estimate may be off.
    error: int


class Percentiles(TypedDict):
    """Measured durations, seconds; null if none was measured."""

    p50: float | None
    p99: float | None
    max: float | None


class FunctionTotals(TypedDict):
    """The calls of one function in one version."""

    function: str
    version: int
    calls: int
    calls_per_second: float | None
    #: Calls that found no room in the ring: counted, but not written.
    lost: int
    #: Calls whose arguments could not be read.
    refused: int
    #: Whether it was called after the limit of the run.
    limit_reached: bool
    missing: MissingCalls
    #: Calls whose duration was measured.
    measured: int
    duration_seconds: Percentiles


class CallingProcess(TypedDict):
    """The calls of one process."""

    pid: str
    who: str | None
    calls: int


class Caller(TypedDict):
    """The calls that return to one function."""

    caller: str
    calls: int


class CallSummaryLine(TypedDict):
    """The last line."""

    event: Literal["summary"]
    target: Target
    stopped_because: str
    #: Seconds.
    duration: float
    calls: int
    functions: list[FunctionTotals]
    #: Those that called most.
    processes: list[CallingProcess]
    callers: list[Caller]
    #: What a reader of the figures should know.
    notes: list[str]
