# SPDX-License-Identifier: Apache-2.0
"""
Whether a process that calls itself a VM has the memory of one.

Symbols and the names of threads are easily forged. Every VM starts with the same first atoms in its
atom table, whatever its release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.layouts import load, nearest
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.target import Target


@dataclass(frozen=True)
class _Unchecked:
    """
    A target with the layout of the nearest release, used without a check.

    The table of atoms is older than all of them; what is read is compared with its known contents.
    """

    target: Target

    @property
    def layout(self) -> Layout:
        release = nearest(self.target.otp_release)
        return load(release, usdt=self.target.usdt, interpreter=self.target.flavor == "emu")

    @property
    def memory(self) -> Memory:
        return self.target.memory

    def address(self, name: str) -> int:
        return self.target.address(name)


def has_atoms(target: Target) -> bool:
    """Whether the first atoms of *target* are those of a VM. NoSuchProcessError if it has ended."""
    try:
        Atoms(cast("Target", _Unchecked(target)))
    except ReadRefusedError:
        return False
    return True
