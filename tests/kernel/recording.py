# SPDX-License-Identifier: Apache-2.0
"""
A ``scope-trace record`` as a process of its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tracing import SCOPE_TRACE, Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def record(pid: int, path: Path, *words: str, **popen) -> Iterator[Run]:
    """
    A recording of *pid* into *path* without an end, counting whatever it costs.
    """
    words = ("--max-cost", "100%", *words)
    command = ("record", "--pid", str(pid), "--duration", "0", "-o", str(path), *words)
    run = Run([*SCOPE_TRACE, *command], None, **popen)
    try:
        run.wait_for_counting()
        yield run
    finally:
        run.close()
