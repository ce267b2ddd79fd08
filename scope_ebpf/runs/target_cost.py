# SPDX-License-Identifier: Apache-2.0
"""What a run costs its target, and when it costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.budget.reference_counters import cpu_clock
from scope_ebpf.sinks.plain import say

if TYPE_CHECKING:
    from scope_ebpf.budget.brake import Brake


def cpu_seconds(pid: int) -> float | None:
    """User and system seconds of a process, None if it has ended."""
    try:
        return cpu_clock(pid)
    except OSError:
        return None


def say_braked(brake: Brake) -> None:
    """Print that the run ended itself because of --max-cost."""
    say(
        f"scope-trace: it took {brake.share:.0%} of the target's CPU for a second, and --max-cost "
        f"allows {brake.most:.0%}: stopped; what was seen until now is kept"
    )
