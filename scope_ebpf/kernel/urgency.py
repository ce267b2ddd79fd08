# SPDX-License-Identifier: Apache-2.0
"""
Threads that run at once when they wake up, before all that are not of this kind.

Hooks of a window that is over cost the target until they are out. A nice value does not help where
the target, or a third, runs in another group of the scheduler (sched(7), autogroup and cgroups):
groups share the CPUs whatever the nice values in them.
"""

from __future__ import annotations

import os
from contextlib import suppress


def hurry(pid: int = 0) -> None:
    """
    Let *pid*, or this thread, run at once from now on; nothing where that is not permitted.

    So do threads that it starts: those of the attacher remove hooks.
    """
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


def calm() -> None:
    """Let this thread wait like others again."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
