# SPDX-License-Identifier: Apache-2.0
"""
Where each scheduler keeps its current process and function, for BPF programs that read them.

Checked before use (``layouts.checks``). Source: OTP-25.2.3 erts/emulator/beam/erl_process.h
(struct ErtsSchedulerData_, ErtsSchedulerSleepInfo_).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf.beam.layouts.checks import schedulers
from scope_ebpf.beam.vm.counters import SLEEP_FLAGS
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target

#: ErtsCodeMFA: module, function, arity; the code follows (OTP-25.2.3 code_ix.h, ErtsCodeInfo).
_MFA = 24


class SchedulerAddresses(NamedTuple):
    """
    One scheduler, by the names of ``events.THREAD``.

    Addresses of its data and of its sleep flags, and where in that data and in a
    process fields lie. A normal scheduler leaves the native function that it calls in
    ``current`` (jit/beam_jit_common.cpp, beam_jit_call_nif); a dirty one calls what ``i``
    points to, whose ErtsCodeMFA lies before it (erl_nif.c, erts_call_dirty_nif).
    """

    scheduler: int
    sleep_flags: int
    at_process: int
    at_nif: int
    at_reductions: int
    at_code: int
    before_code: int
    at_fcalls: int


class SchedulerFinder:
    """The schedulers of *target*. ReadRefusedError where they are not found, or a check fails."""

    def __init__(self, target: Target) -> None:
        self._addresses = {kind: found.tolist() for kind, found in schedulers(target).items()}
        self._target = target
        self._layout = layout = target.layout
        self._fields = tuple(
            layout.offset("ErtsSchedulerData", name)
            for name in ("current_process", "current_nif", "reductions")
        )
        self._codes = {
            "normal": (layout.offset("Process", "current"), 0),
            "dirty": (layout.offset("Process", "i"), _MFA),
        }
        self._fcalls = layout.offset("Process", "fcalls")

    def find(self, role: str, number: int) -> SchedulerAddresses | None:
        """Find one scheduler, None for other threads and where a check fails."""
        addresses = self._addresses.get(role, ())
        if not 0 < number <= len(addresses):
            return None
        try:
            return self._checked(addresses[number - 1], role == "normal", number)
        except ReadRefusedError:
            return None

    def _checked(self, address: int, normal: bool, number: int) -> SchedulerAddresses | None:
        memory, layout = self._target.memory, self._layout
        field = "no" if normal else "dirty_no"
        said = memory.u32(address + layout.offset("ErtsSchedulerData", field))
        sleep = memory.u64(address + layout.offset("ErtsSchedulerData", "ssi"))
        if said != number or memory.u64(sleep) != address:
            return None
        process, nif, reductions = self._fields
        code, before = self._codes["normal" if normal else "dirty"]
        return SchedulerAddresses(
            address, sleep + SLEEP_FLAGS, process, nif, reductions, code, before, self._fcalls
        )
