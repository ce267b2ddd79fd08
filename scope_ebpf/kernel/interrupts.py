# SPDX-License-Identifier: Apache-2.0
"""
Ctrl-C in code that would lose it.

Python raises KeyboardInterrupt at any point, also in a callback from C and in code that suppresses
all exceptions. There it is lost, and the program does not stop.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def held_back() -> Iterator[None]:
    """Block SIGINT while the block runs; a Ctrl-C takes effect when it ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
