# SPDX-License-Identifier: Apache-2.0
"""
What a finding can be. Apart from the documents, whose library is not there when a command runs.
"""

from __future__ import annotations

from typing import Literal

Severity = Literal["critical", "warning"]
Confidence = Literal["certain", "likely"]
#: What a finding can be about; more may come.
Kind = Literal[
    "stopped",
    "halting",
    "throttled",
    "wedged",
    "dirty_pool",
    "starved",
    "full_link",
    "blocked_port",
    "deadlock",
    "stopping",
    "suspended",
    "limit",
    "memory",
    "crash_loop",
    "logger",
    "code_loading",
    "waits_for",
    "mailbox",
    "binaries",
    "ets",
    "timers",
    "outside",
    "fragmentation",
    "gc",
    "run_queue",
    "busy_wait",
]
