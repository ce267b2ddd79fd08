# SPDX-License-Identifier: Apache-2.0
"""What the JIT keeps in a frame of an Erlang stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.target import Target


def has_frame_pointers(target: Target) -> bool | None:
    """
    Whether frames have a frame pointer beneath the return address (``+JPperf true``).

    None where the VM does not say it: OTP 24, or a build that hides its symbols.
    ERTS_FRAME_LAYOUT_RA is 0, ERTS_FRAME_LAYOUT_FP_RA is 1 (OTP-25.2.3
    erts/emulator/beam/erl_vm.h).
    """
    address = target.find("erts_frame_layout")
    if address is None:
        return None
    return {0: False, 1: True}.get(target.memory.u32(address))
