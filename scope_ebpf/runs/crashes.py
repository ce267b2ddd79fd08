# SPDX-License-Identifier: Apache-2.0
"""Crashes that the programs have counted, with the names of one VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from scope_ebpf import events
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.errors import ScopeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target
    from scope_ebpf.results.documents.traces import CrashGroup

_CLASSES = events.KINDS["exit"].classes
_NAMES = ("module", "function", "name", "reason")


def named(target: Target, rows: Iterable[tuple[NDArray[np.void], int]]) -> list[CrashGroup] | None:
    """
    Groups of crashes, most first; *rows* are those of ``Session.crashes``.

    None where the VM's atoms cannot be read any more.
    """
    found = list(rows)
    indices = {int(key[name]) for key, _ in found for name in _NAMES} - {0}
    try:
        texts = Atoms(target).texts(indices) if indices else {}
    except (ScopeError, OSError):
        return None
    groups = [_group(key, seen, texts) for key, seen in found]
    return sorted(groups, key=lambda one: (-one["seen"], str(one["module"]), one["line"] or 0))


def _group(key: NDArray[np.void], seen: int, texts: dict[int, str | None]) -> CrashGroup:
    module, function, name, reason = (texts.get(int(key[field])) for field in _NAMES)
    kind = cast("Literal['error', 'killed', 'other']", _CLASSES[int(key["class"])])
    return {
        "kind": kind,
        "module": module,
        "function": function,
        "line": int(key["line"]) or None,
        "exit_reason": reason,
        "name": name,
        "seen": seen,
    }
