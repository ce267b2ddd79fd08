# SPDX-License-Identifier: Apache-2.0
"""Names for processes that ended before they were looked up, by the stacks that they had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.processes.names import LOOPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.stacks.erlang_frames import Stack

#: Functions that start processes for other modules: proc_lib.erl, erlang.erl, Elixir's
#: task/supervised.ex. Each calls the function that the process is for.
_STARTERS = {"proc_lib", "gen", "Elixir.Task.Supervised"}
_APPLY = ("erlang", "apply")
#: What the VM does with a process whose Erlang stack cannot be read, by the beginning of the name
#: of a C function.
_DOING = {
    "erts_do_exit_process": "while it exited",
    "erts_continue_exit_process": "while it exited",
    "erts_garbage_collect": "during a garbage collection",
    "erts_gc_": "during a garbage collection",
}
#: Processes whose names are kept.
_MOST = 1 << 14


class EndedProcesses:
    """Names of processes that have ended; what one sample shows holds for later ones."""

    def __init__(self) -> None:
        self._kept: dict[int, str] = {}

    def name(self, pid: int, stack: Stack) -> str:
        """The name of process *pid*, a term, of which *stack* was sampled."""
        found = name_of(stack.erlang or (), complete=stack.complete)
        if found is None:
            native = [name.name for name in stack.native]
            return self._kept.get(pid) or f"(ended {_doing(native)})"
        if stack.complete and len(self._kept) < _MOST:
            self._kept[pid] = found
        return found


def name_of(frames: Sequence[Mfa], *, complete: bool) -> str | None:
    """
    The name of a process by its Erlang *frames*, innermost first; None without a frame.

    Below the callback of a behaviour it is the callback's module, as it is for a process that
    lives; else its first function that only this kind of process has.
    """
    if not frames:
        return None
    outermost = list(reversed(frames))
    at = next((n for n, mfa in enumerate(outermost) if not _starts_others(mfa)), None)
    if at is not None and any(mfa.module in LOOPS for mfa in outermost[:at]):
        return f"{outermost[at].module} (ended)"
    known = "ended" if complete else "ended, outer stack unknown"
    return f"{outermost[at or 0]} ({known})"


def _starts_others(mfa: Mfa) -> bool:
    named = mfa.module in _STARTERS or mfa.module in LOOPS
    return named or (mfa.module, mfa.function) == _APPLY


def _doing(native: Sequence[str]) -> str:
    """What the VM did with the process, by C functions."""
    for name in native:
        for start, text in _DOING.items():
            if name.startswith(start):
                return text
    return "before it was named"
