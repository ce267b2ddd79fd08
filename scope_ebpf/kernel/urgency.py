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

#: Policies of threads that need no more: a real-time priority of the user's is not lowered. The
#: last one is SCHED_DEADLINE (include/uapi/linux/sched.h).
_REAL_TIME = (os.SCHED_FIFO, os.SCHED_RR, 6)


def hurry(pid: int) -> None:
    """
    Let *pid*, or this thread if it is 0, run at once from now on, where that is permitted.

    So do threads that it starts: those of the attacher remove hooks.
    """
    with suppress(OSError):
        if os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK not in _REAL_TIME:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


class Urgency:
    """Lets this thread run at once for a time, and then as it ran before: it may be a batch job."""

    def __init__(self) -> None:
        self._before: tuple[int, os.sched_param] | None = None
        self._urgent = False

    def set(self, *, urgent: bool) -> None:
        """Run at once from now on, or as before; nothing where that is not permitted."""
        if urgent == self._urgent:
            return
        self._urgent = urgent
        with suppress(OSError):
            if urgent:
                self._before = os.sched_getscheduler(0), os.sched_getparam(0)
                hurry(0)
            elif self._before:
                os.sched_setscheduler(0, *self._before)
