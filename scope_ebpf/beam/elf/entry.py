# SPDX-License-Identifier: Apache-2.0
"""Where in a function a breakpoint is cheap; ``scope_ebpf.sandbox.code`` finds the address."""

from __future__ import annotations

from typing import NamedTuple

from scope_ebpf.sandbox.registers import ARGUMENTS

__all__ = ["ARGUMENTS", "START", "Entry"]


class Entry(NamedTuple):
    """*shift* in bytes from the start, and the register of each argument there, or None."""

    shift: int
    registers: tuple[str | None, ...]


START = Entry(0, ARGUMENTS)
