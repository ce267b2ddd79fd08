# SPDX-License-Identifier: Apache-2.0
"""Hooks of the markers of one VM, and what is said of a VM that has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.marks.marked import VERSION
from scope_ebpf.errors import NothingToAttachError, UsageError
from scope_ebpf.kernel.observers.mark_watch import PROGRAMS
from scope_ebpf.planning.marks import mark_hooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scope_ebpf.attach.plan import Attachment
    from scope_ebpf.beam.code.functions import Pattern
    from scope_ebpf.beam.marks.marked import MarkedCode
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: The classes whose markers are watched, by the option ``--class``.
CLASSES = {"callbacks": ("callback",), "all": ("callback", "function")}
#: What a program takes beside the trap, as a part of what a trap takes (bench/marks.py observed, of
#: callbacks that take no message); for what tags take, windows leave a quarter of the budget.
PROGRAM = 0.6
#: Versions of the marker that an error names.
_MOST_VERSIONS = 4
_MARK_THEM = (
    "mark a release with `scope-mark DIR --profile callbacks` and start it anew (docs/marking.md)"
)


def hooks_of(
    target: Target, atoms: Atoms, classes: Sequence[str]
) -> tuple[NDArray[np.void], list[Attachment]]:
    """Settings and hooks of the markers of *classes*; ReadRefusedError if one is not certain."""
    settings = np.zeros((), events.MARK_SETTINGS)
    settings["tgid"] = target.pid
    settings["process_id"] = target.layout.offset("Process", "common.id")
    settings["map_subtag"] = target.layout.facts.map_subtag
    settings["process_hend"] = target.layout.offset("Process", "hend")
    found = mark_hooks(target, atoms, {name: PROGRAMS[name] for name in classes}, "mark")
    settings["frames"] = found.frames
    settings["function_in_register"] = found.in_register
    return settings, list(found.attachments)


def require_jit(target: Target) -> None:
    """Raise NothingToAttachError for a VM that runs the interpreter."""
    if target.flavor != "jit":
        raise NothingToAttachError(
            f"process {target.pid} runs the interpreter, whose registers are elsewhere; marks are "
            "seen on the JIT (OTP 24 and later on x86_64)"
        )


def require_marked(target: Target, code: MarkedCode, patterns: Sequence[Pattern]) -> None:
    """
    Raise an error that says why nothing is watched, if that is so.

    NothingToAttachError for a VM without marked code, UsageError if *patterns* fit none of it.
    """
    if not code.found.modules and code.found.unknown:
        raise NothingToAttachError(_other_version(target.pid, code))
    if not code.found.modules:
        raise NothingToAttachError(
            f"no code that process {target.pid} has loaded is marked: {_MARK_THEM}"
        )
    if not code.found.functions:
        texts = ", ".join(pattern.text for pattern in patterns)
        raise UsageError(
            f"nothing that fits {texts} is in the {len(code.found.modules)} marked modules that "
            f"process {target.pid} has loaded"
        )


def _other_version(pid: int, code: MarkedCode) -> str:
    versions = "".join(f"{version}; " for version in sorted(code.found.versions)[:_MOST_VERSIONS])
    count = len(code.found.unknown)
    were = "modules were" if count > 1 else "module was"
    return (
        f"{count} {were} marked by another version of scope-mark ({versions}{VERSION} is read) in "
        f"process {pid}: mark them again and start it anew (docs/marking.md)"
    )
