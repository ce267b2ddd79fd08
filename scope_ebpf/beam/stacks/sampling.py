# SPDX-License-Identifier: Apache-2.0
"""Constants of a target for the profiler's BPF programs: offsets, and its scheduler threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.layouts.checks import schedulers
from scope_ebpf.beam.vm.threads import threads
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

_OFFSETS = {
    "process_heap": ("Process", "heap"),
    "process_stop": ("Process", "stop"),
    "process_hend": ("Process", "hend"),
    "process_i": ("Process", "i"),
    "process_current": ("Process", "current"),
    "process_state": ("Process", "state"),
    "scheduler_process": ("ErtsSchedulerData", "current_process"),
    "scheduler_port": ("ErtsSchedulerData", "current_port"),
    "scheduler_nif": ("ErtsSchedulerData", "current_nif"),
}


def sample_settings(target: Target) -> NDArray[np.void]:
    """
    The settings for *target*, one ``events.SAMPLE_SETTINGS``, without its period.

    ReadRefusedError where the layout of the target's structs is not known, or its code.
    """
    if target.binary.machine != "x64":
        raise ReadRefusedError(f"{target.binary.machine} is not supported yet, only x86_64 is")
    target.address("r")
    settings = np.zeros((), events.SAMPLE_SETTINGS)
    settings["tgid"] = target.pid
    layout = target.layout
    for name, (struct, field) in _OFFSETS.items():
        settings[name] = layout.offset(struct, field)
    if layout.has("Process", "frame_pointer"):
        settings["process_frame_pointer"] = layout.offset("Process", "frame_pointer")
    return settings


def scheduler_threads(target: Target) -> dict[int, tuple[int, int]]:
    """
    Find each scheduler's data, by tid: its address, and the start of its C stack, 0 if unknown.

    C functions that Erlang code calls use the stack below the registers, which the JIT keeps there
    for normal schedulers (ErtsSchedulerRegisters, OTP-25.2.3 erl_process.h). Raises
    ReadRefusedError that names a failed check.
    """
    addresses = {role: found.tolist() for role, found in schedulers(target).items()}
    registers = target.layout.offset("ErtsSchedulerData", "registers")
    found = {}
    for thread in threads(target.pid):
        of = addresses.get(thread.role, ())
        if not 0 < thread.number <= len(of):
            continue
        address, top = of[thread.number - 1], 0
        if thread.role == "normal" and target.flavor == "jit":
            top = target.memory.u64(address + registers)
        found[thread.tid] = (address, top)
    return found
