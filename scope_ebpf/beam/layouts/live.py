# SPDX-License-Identifier: Apache-2.0
"""The layout of a running VM, checked against that VM."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from scope_ebpf.beam.layouts import SIZE_CHECKS, nearest, ranges, version
from scope_ebpf.beam.layouts.checks import check_entry, check_rare_data, schedulers
from scope_ebpf.beam.memory.roots import Roots
from scope_ebpf.beam.vm.allocators import AllocatorReader
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.vm.target import Target

#: All checks that a layout must pass if the version of ERTS is not described.
_CHECKS: tuple[Callable[[Target], object], ...] = (
    schedulers,
    lambda target: AllocatorReader(target).read(),
    check_entry,
    check_rare_data,
)


class _Trial:
    """A target as if *layout* was that of its structs."""

    def __init__(self, target: Target, layout: Layout) -> None:
        self._target = target
        self.layout = layout
        self._roots = Roots(cast("Target", weakref.proxy(self)))

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)

    def find(self, name: str) -> int | None:
        return self._roots.find(name)

    def address(self, name: str) -> int:
        return self._roots.address(name)


def layout_for(target: Target) -> Layout:
    """
    Choose the layout of a running VM and check it against that VM.

    The version of ERTS decides. Where it is described, readers of further structs check them
    against the VM themselves. Where it is not, the layout of the nearest release that passes
    every check is taken, if there is exactly one. Raises ReadRefusedError that names the check,
    what was expected and what was found.
    """
    erts = version(target.erts_version)
    usdt, interpreter = target.usdt, target.flavor == "emu"
    layouts = ranges(nearest(target.otp_release), usdt=usdt, interpreter=interpreter)
    for layout in layouts:
        if layout.describes(erts):
            _check_sizes(target, layout)
            return layout
    return _only_one(target, layouts)


def _only_one(target: Target, layouts: tuple[Layout, ...]) -> Layout:
    """Give the one layout that passes all checks; ReadRefusedError if none does, or several do."""
    passed: list[Layout] = []
    failed: list[str] = []
    for layout in layouts:
        try:
            _check_sizes(target, layout)
            trial = cast("Target", _Trial(target, layout))
            for check in _CHECKS:
                check(trial)
        except ReadRefusedError as error:
            failed.append(str(error))
            continue
        passed.append(layout._replace(exact=False))
    if len(passed) == 1:
        return passed[0]
    here = f"process {target.pid} runs ERTS {target.erts_version}, which no layout describes, and"
    if not passed:
        raise ReadRefusedError(f"{here} none passes the checks: {failed[-1]}")
    tags = ", ".join(layout.tag for layout in passed)
    raise ReadRefusedError(f"{here} several pass the checks ({tags}). Its memory is not read")


def _check_sizes(target: Target, layout: Layout) -> None:
    for name, struct in SIZE_CHECKS:
        symbol = target.binary.symbol(name)
        if symbol is None or not symbol.size:
            continue
        if symbol.size != layout.size(struct):
            raise ReadRefusedError(
                f"process {target.pid} runs OTP {target.otp_release} with another {struct} than "
                f"{layout}: symbol {name} has {symbol.size} bytes, expected "
                f"{layout.size(struct)}. Its memory is not read"
            )
