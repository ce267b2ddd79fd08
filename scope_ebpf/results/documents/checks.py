# SPDX-License-Identifier: Apache-2.0
"""The document of ``check``."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from scope_ebpf.results.documents.vms import Target
from scope_ebpf.results.kinds import Confidence, Kind, Severity


class Subject(TypedDict, total=False):
    """What a finding is about."""

    #: Pid of a process.
    process: str
    #: Its registered name; null if it has none.
    name: str | None
    #: What it runs, as M:F/A.
    initial_call: str | None
    port: str
    #: Name of another node.
    peer: str
    #: A table of the VM, a kind of scheduler, or an allocator.
    what: str
    #: An ETS table of the process.
    table: str
    function: str | None
    #: Path of a native library, as the VM sees it.
    library: str


class Involved(TypedDict):
    """A process that has part in a finding."""

    process: str
    #: Its registered name; null if it has none.
    name: str | None
    initial_call: str | None
    function: str | None


class ShapeCount(TypedDict):
    """Messages with the same tag."""

    shape: str
    count: int


class Evidence(TypedDict, total=False):
    """Figures that a finding rests on; it has those that belong to its kind."""

    #: Seconds for which it lasts, at least.
    seconds: float
    #: Messages in the mailbox at the end.
    messages: int
    messages_per_second: float
    #: Of the process that they wait for.
    reductions_per_second: float
    #: Tags of the messages that wait longest.
    shapes: list[ShapeCount]
    status: str
    function: str | None
    #: Source file and line of that function.
    location: str | None
    bytes: int
    #: A part of 1.
    share: float
    used: int
    limit: int
    #: Processes, ports or callers that wait.
    waiting: int
    #: Some of the processes that have part in it.
    processes: list[Involved]
    #: How many there are.
    count: int
    #: Bytes that wait to be sent.
    queued_bytes: int
    #: Newest names of a table.
    newest: list[str]
    per_second: float


class FindingDocument(TypedDict):
    """One finding."""

    severity: Severity
    kind: Kind
    subject: Subject
    summary: str
    evidence: Evidence
    confidence: Confidence
    #: Commands that show more.
    next: list[str]


class NotChecked(TypedDict):
    """A part of the VM that could not be looked at."""

    what: str
    reason: str


class CheckVerdict(TypedDict):
    """The first finding in short."""

    severity: Literal["critical", "warning", "good"]
    summary: str


class CheckDocument(TypedDict):
    """What is wrong with one VM."""

    schema: Literal[1]
    #: partial if a part of the VM could not be looked at.
    outcome: Literal["complete", "partial"]
    target: Target
    duration_seconds: float
    verdict: CheckVerdict
    #: The most severe and most certain first, ten at most.
    findings: list[FindingDocument]
    findings_total: int
    #: Findings that are left out, by kind.
    left_out: dict[str, int]
    #: Parts of the VM that were looked at.
    checked: list[str]
    not_checked: list[NotChecked]
    #: CPU seconds of the check itself; in the daemon without those of its other threads.
    own_cpu_seconds: float
    #: Whether names and texts of the application are replaced.
    redacted: bool
