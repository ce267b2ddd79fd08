# SPDX-License-Identifier: Apache-2.0
"""Well-known libraries in a VM, and the hook that ``scope-trace telemetry`` would use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.errors import ReadRefusedError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.vms import LoadedLibrary, TelemetryHook


def libraries_of(
    target: Target,
) -> tuple[list[LoadedLibrary] | None, TelemetryHook | None, list[str]]:
    """The libraries of *target*, how telemetry can be seen, and why something is not known."""
    from scope_ebpf.beam.code.libraries import loaded
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.telemetry import library
    from scope_ebpf.runs.telemetry_hooks import hooks_of

    try:
        atoms = Atoms(target)
        found: list[LoadedLibrary] = [
            {"name": one.name, "version": one.version} for one in loaded(target, atoms)
        ]
        seen = library.loaded(target, atoms)
    except ReadRefusedError as error:
        return None, None, [str(error)]
    if seen is None:
        return found, None, []
    names = [hook.name for hook in hooks_of(target, seen)]
    if names:
        return found, {"hook": " + ".join(names), "why": None}, []
    try:
        library.execute(target, atoms)
    except ScopeError as error:
        return found, {"hook": None, "why": str(error)}, []
    return found, {"hook": "breakpoint on telemetry:execute/3", "why": None}, []


def library_lines(
    libraries: list[LoadedLibrary] | None, telemetry: TelemetryHook | None
) -> Iterator[str]:
    """Lines about what is loaded into a VM, with text of the VM as it is."""
    if libraries:
        names = ", ".join(
            one["name"] + (f" {one['version']}" if one["version"] else "") for one in libraries
        )
        yield f"libraries: {names}"
    if telemetry:
        where = telemetry["hook"] or f"cannot be seen: {telemetry['why']}"
        yield f"`scope-trace telemetry`: {where}"
