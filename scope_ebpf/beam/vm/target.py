# SPDX-License-Identifier: Apache-2.0
"""
One running VM, as its readers see it.

The facts are here; ``discover``, which finds VMs, adds the search for layout and globals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.memory.process_memory import Memory
    from scope_ebpf.beam.vm.identity import Identity
    from scope_ebpf.results.documents import vms


@dataclass(frozen=True)
class Target(ABC):
    """One running VM. Readings of it are valid while *identity* passes its check."""

    pid: int
    #: Path of the emulator, as the kernel names it.
    exe: str
    #: Node name; None if it is not known.
    node: str | None
    otp_release: str
    erts_version: str
    flavor: Literal["jit", "emu"]
    #: Number of normal schedulers.
    schedulers: int
    #: True if the emulator has USDT probes.
    usdt: bool
    #: Start of the process, seconds since the host booted.
    started: float
    #: Distance between an address of the file and the same in memory, bytes.
    base: int
    binary: Binary
    memory: Memory
    identity: Identity

    def as_json(self) -> vms.Target:
        """The fields of the target in every JSON output."""
        return {
            "pid": self.pid,
            "exe": self.exe,
            "node": self.node,
            "otp_release": self.otp_release,
            "erts_version": self.erts_version,
            "flavor": self.flavor,
            "schedulers": self.schedulers,
        }

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The checked layout of this VM's structs; ReadRefusedError if a check failed."""

    @abstractmethod
    def find(self, name: str) -> int | None:
        """Find a global of the VM in its memory; None if it is not found."""

    @abstractmethod
    def address(self, name: str) -> int:
        """Find a global of the VM in its memory; ReadRefusedError if it is not found."""
