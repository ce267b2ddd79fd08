# SPDX-License-Identifier: Apache-2.0
"""
Start here: from a symptom to the dashboard that shows its cause.
"""

from typing import Final

from boards.overview import ALL_NODES
from boards.panels import CONTEXT
from boards.records import Board, Panel, Query, Row, firing

#: What a user notices; the dashboard that shows it, what to look for there, and a first command.
SYMPTOMS: Final = (
    (
        "Requests are slow or time out",
        "overview",
        "which of its first three rows is red",
        "scope-trace --pid PID",
    ),
    (
        "One part of the application is slow",
        "processes",
        "Longest mailboxes",
        "scope-trace top --pid PID",
    ),
    (
        "The node does not answer at all",
        "schedulers",
        "Scheduler utilization, 99 of 100 schedules",
        "scope-trace schedulers --pid PID --once",
    ),
    (
        "CPU is high",
        "schedulers",
        "Work and busy waiting",
        "scope-trace profile --pid PID -o cpu.html",
    ),
    (
        "Memory grows, or the VM was killed",
        "memory",
        "Memory by kind; Memory, of the cgroup's limit",
        "scope-trace top --pid PID --sort memory",
    ),
    (
        "Processes crash or restart",
        "processes",
        "Exits by reason, Crashes",
        "scope-trace --pid PID --events exit --stream",
    ),
    (
        "A node lost others of its cluster",
        "distribution",
        "Connected nodes, Full links",
        "scope-trace --pid PID --events dist_busy,dist_output",
    ),
    (
        "Clients or files are slow to take data",
        "distribution",
        "Ports that say busy",
        "scope-trace --pid PID --events port_busy",
    ),
    (
        "A figure looks wrong, or a node is missing",
        "observer",
        "Can the figures be trusted?",
        "scope-trace doctor PID",
    ),
)


def _table() -> str:
    rows = ["| symptom | dashboard | look for | first command |", "| --- | --- | --- | --- |"]
    for symptom, board, look, command in SYMPTOMS:
        link = f"[{board.capitalize()}](/d/scope-ebpf-{board}?{CONTEXT})"
        rows.append(f"| {symptom} | {link} | {look} | `{command}` |")
    return "\n".join(rows)


FINDINGS: Final = Panel(
    "Findings of the last check",
    "none",
    "What scope-trace check would find in each VM, and how long ago the daemon looked; a node without "
    "a kind is well. A check is made each minute, or less often where it is expensive.",
    "the daemon's page /vm/PID has the verdict of a node and names the culprit; `scope-trace check PID` "
    "makes it anew.",
    (
        Query("max by (NODE, kind, severity) (beam_finding{HERE})", ""),
        Query(
            "time() - max by (NODE) (scope_ebpf_findings_timestamp_seconds{HERE})",
            "",
            column="age",
            unit="s",
        ),
    ),
    "table",
    width=12,
    height=6,
    low=None,
    columns=(
        ("node", "node"),
        ("instance", "host"),
        ("kind", "kind"),
        ("severity", "severity"),
    ),
)
_NOW: Final = Row(
    "Now",
    (
        firing(width=12, height=6),
        FINDINGS,
        ALL_NODES,
    ),
)
_WHERE: Final = Row(
    "Where to look",
    (
        Panel(
            "From a symptom to a dashboard",
            "none",
            "What a user notices, the dashboard that shows its cause, and a first command.",
            "",
            (),
            "text",
            width=24,
            height=10,
            text=_table(),
        ),
    ),
)

BOARD = Board(
    "start",
    "Start here",
    "What fires, how each node is, and which dashboard shows the cause of a symptom.",
    (_NOW, _WHERE),
)
