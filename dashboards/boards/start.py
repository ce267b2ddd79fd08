# SPDX-License-Identifier: Apache-2.0
"""
Start here: from a symptom to the dashboard that shows its cause.
"""

from typing import Final

from boards.overview import ALL_NODES
from boards.panels import CONTEXT
from boards.records import Board, Panel, Row, firing

#: What somebody notices; the dashboard that shows it, what to look for there, and a first command.
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


_NOW: Final = Row(
    "Now",
    (
        firing(width=24, height=5),
        ALL_NODES,
    ),
)
_WHERE: Final = Row(
    "Where to look",
    (
        Panel(
            "From a symptom to a dashboard",
            "none",
            "What somebody notices, the dashboard that shows its cause, and a first command.",
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
