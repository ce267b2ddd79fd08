# SPDX-License-Identifier: Apache-2.0
"""
The current name of a VM's node.

A node has no name until its distribution starts, may get one later
(``net_kernel:start``), lose it again (``net_kernel:stop``) and take another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

#: The name of a node that is not distributed (OTP-25.2.3 erts/emulator/beam/erl_node_tables.c).
NAMELESS = "nonode@nohost"
#: Characters of an atom, and so of a node's name.
MAX_NAME = 255


class NodeName:
    """Reads the name of *target*'s node: two words of its memory, and the atom when it is new."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._atom = 0
        self._text: str | None = None

    def read(self) -> str | None:
        """Return the name now; None where the VM's tables cannot be read."""
        target = self._target
        try:
            node = target.memory.u64(target.address("erts_this_node"))
            atom = target.memory.u64(node + target.layout.offset("ErlNode", "sysname"))
            if atom != self._atom:
                self._text = Atoms(target).text(atom)[:MAX_NAME]
                self._atom = atom
        except ReadRefusedError:
            return None
        return self._text
