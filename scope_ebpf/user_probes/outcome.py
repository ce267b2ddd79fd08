# SPDX-License-Identifier: Apache-2.0
"""What a run of a user's probe leaves to be told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """
    Why it stopped, what was seen, lost and spent.

    *hits* and *cost_seconds* are None where nobody counts them. Unless the kernel has *measured*
    programs, the time that the probe itself ran is not in *cost_seconds*.
    *unread* are reads of the VM's memory that failed, *full* counts that found no room
    in their table. *counts* has the keys, ctypes structures, of each count, and
    *histograms* seconds in all and the slots of ``summary.Histogram``.
    """

    stopped: str = ""
    seconds: float = 0.0
    events: int = 0
    lost: int = 0
    unread: int = 0
    full: int = 0
    hits: int | None = 0
    cost_seconds: float | None = 0.0
    cost_share: float | None = None
    measured: bool = True
    counts: dict[str, list[tuple[object, int]]] = field(default_factory=dict)
    histograms: dict[str, tuple[float, tuple[int, ...]]] = field(default_factory=dict)
