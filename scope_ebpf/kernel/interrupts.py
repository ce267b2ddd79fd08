# SPDX-License-Identifier: Apache-2.0
"""
Ctrl-C where it would be swallowed.

Python raises KeyboardInterrupt wherever it is, also within a callback from C, and in code that
takes any exception for "not there"; both forget it, and the program goes on as if nobody had asked.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def held_back() -> Iterator[None]:
    """While the block runs a Ctrl-C waits; it comes when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
