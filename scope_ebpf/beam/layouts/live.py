# SPDX-License-Identifier: Apache-2.0
"""The layout of a running VM, held against that VM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scope_ebpf.beam.layouts import SIZE_CHECKS, load, nearest
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.target import Target


def layout_for(target: Target) -> Layout:
    """
    Choose the layout of a running VM and check it against that VM.

    A release that is not described here is tried with the nearest that is, and
    believed only if every check holds. Raises ReadRefusedError that names the
    check, what was expected and what was found.
    """
    release, exact = nearest(target.otp_release)
    layout = load(release, usdt=target.usdt, interpreter=target.flavor == "emu")
    layout = replace(layout, exact=exact)
    checked = 0
    for name, struct in SIZE_CHECKS:
        symbol = target.binary.symbol(name)
        if symbol is None or not symbol.size:
            continue
        checked += 1
        if symbol.size != layout.size(struct):
            raise ReadRefusedError(
                f"process {target.pid} runs OTP {target.otp_release} with another {struct} than "
                f"{layout}: symbol {name} has {symbol.size} bytes, expected "
                f"{layout.size(struct)}. Its memory is not read"
            )
    return layout
