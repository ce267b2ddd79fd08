# SPDX-License-Identifier: Apache-2.0
"""
For whom a process waits that has called a server.

The frame of ``gen:do_call/4`` holds the monitor of the call, and the server's pid where the call
has a timeout; the frame above it holds the timeout, the request and the server as the caller named
it (OTP-25.2.3, 27.3.4 and 29.1.2 lib/stdlib/src/gen.erl; seen in the stacks of live VMs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import (
    ATOM_MASK,
    POINTER_MASK,
    is_atom,
    is_boxed,
    is_pid,
    is_small,
    small,
)
from scope_ebpf.beam.processes.table import (
    DIRTY_RUNNING,
    DIRTY_RUNNING_SYS,
    RUNNING,
    RUNNING_SYS,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scope_ebpf.beam.code.tables import Mfa
    from scope_ebpf.beam.processes.view import Viewer

#: The functions in which callers of servers wait.
CALLING = frozenset({("gen", "do_call", 4)})
#: Modules that call servers for others: their frames hold the request, then the server's name.
ABOVE = frozenset(
    {
        *("gen_server", "gen_statem", "gen_fsm", "gen_event", "gen_server2", "p1_server", "sys"),
        "Elixir.GenServer",
    }
)
#: Flags of a process that is on a scheduler.
ON_SCHEDULER = RUNNING | RUNNING_SYS | DIRTY_RUNNING | DIRTY_RUNNING_SYS
#: Words of a stack that are read: the two innermost frames are far smaller.
_WORDS = 48
_WORD = 8
#: A reference of the VM itself has this subtag; its numbers are in the two words behind.
_REFERENCE, _SUBTAG = 0x10, 0x3F
#: Where a function catches exceptions (_TAG_IMMED2_CATCH, OTP-25.2.3 erl_term.h).
_CATCH = 0x1B
#: A tuple of a name and a node, or of ``global`` and a name.
_PAIR = 2 << 6


class Waiting(NamedTuple):
    """One process that waits for the reply of a server."""

    #: Pid term of the caller.
    caller: int
    #: Pid term of the server; None where it is not known which it is.
    server: int | None
    #: The server's registered name, where the caller used it; None for a pid.
    name: str | None
    #: Names the call: two calls of one process differ in it.
    reference: tuple[int, int]
    #: Milliseconds; None for ``infinity`` and where it was not found.
    timeout: int | None
    #: The tag of the request, such as ``{add, _, _}``; contents are never read.
    request: str
    #: The atom in it, as it is; None where there is none, or it was not found.
    tag: str | None


def calls(function: Mfa | None) -> bool:
    """Whether a process in *function* waits for a server's reply."""
    return function is not None and function[:3] in CALLING


class Stacks(NamedTuple):
    """The innermost words of the stacks of some processes, as they were at one time."""

    #: Pid terms.
    pids: list[int]
    words: list[NDArray[np.uint64]]
    #: Which of the processes did not go on while their stacks were read.
    stood: list[bool]
    #: Where they were: the same again only for one that has not run since.
    at: list[tuple[int, ...]]

    def some(self, numbers: list[int]) -> Stacks:
        """Those with these *numbers*."""
        return Stacks(
            [self.pids[number] for number in numbers],
            [self.words[number] for number in numbers],
            [self.stood[number] for number in numbers],
            [self.at[number] for number in numbers],
        )


def stacks(viewer: Viewer, rows: NDArray[np.void], at: NDArray[np.uint64] | None = None) -> Stacks:
    """
    Read the stacks of those processes of *rows* that wait now, at one of the addresses *at*.

    Where a process is is read anew: by now it may wait somewhere else. None is any address.
    """
    if not len(rows):
        return Stacks([], [], [], [])
    now = _now(viewer, rows)
    waits = (now["id"] == rows["id"]) & (now["state"] & np.uint32(ON_SCHEDULER) == 0)
    waits &= now["stop"] < now["hend"]
    if at is not None:
        waits &= within(now["pc"], at)
    rows, now = rows[waits], now[waits]
    if not len(rows):
        return Stacks([], [], [], [])
    counts = np.minimum((now["hend"] - now["stop"]) // np.uint64(_WORD), np.uint64(_WORDS))
    raw, read = viewer.target.memory.gather_ragged(now["stop"], counts * np.uint64(_WORD))
    read &= _now(viewer, rows) == now
    words = [np.frombuffer(one, np.uint64) for one in raw]
    places = [now[name].tolist() for name in ("stop", "hend", "pc", "reductions")]
    return Stacks(now["id"].tolist(), words, read.tolist(), list(zip(*places, strict=True)))


#: Columns that change as soon as a process goes on, and their fields.
_MOVING: tuple[tuple[str, str, type[np.uint32 | np.uint64]], ...] = (
    ("id", "common.id", np.uint64),
    ("state", "state", np.uint32),
    ("stop", "stop", np.uint64),
    ("hend", "hend", np.uint64),
    ("pc", "i", np.uint64),
    ("reductions", "reds", np.uint64),
)


def _now(viewer: Viewer, rows: NDArray[np.void]) -> NDArray[np.void]:
    """Where processes are now, by where their structs lie; zeros for one that is gone."""
    offsets = [viewer.target.layout.offset("Process", source) for _, source, _ in _MOVING]
    raw, _ = viewer.target.memory.gather(rows["pointer"], max(offsets) + _WORD)
    now = np.zeros(len(rows), [(name, kind) for name, _, kind in _MOVING])
    for (name, _, kind), offset in zip(_MOVING, offsets, strict=True):
        now[name] = column(raw, offset, kind)
    return now


def waiting(viewer: Viewer, seen: Stacks, registered: Mapping[str, int]) -> list[Waiting | None]:
    """
    Find for whom processes wait, each of which is in a function of CALLING.

    *registered* has the pid terms of registered names. None for a process that went on meanwhile,
    or whose stack does not show a call.
    """
    return [
        of_stack(viewer, pid, words, registered) if good else None
        for pid, words, good, _ in zip(*seen, strict=True)
    ]


def of_stack(
    viewer: Viewer, pid: int, words: NDArray[np.uint64], registered: Mapping[str, int]
) -> Waiting | None:
    """Find for whom the process *pid* waits, whose stack begins with *words*; else as above."""
    places = np.flatnonzero(viewer.code.inside(words) & (words & np.uint64(3) == 0)).tolist()
    if not places:
        return None
    inner = words[: places[0]].tolist()
    above = words[places[0] + 1 : places[1] if len(places) > 1 else len(words)]
    # Neither is a term: where exceptions are caught, and the frame pointers of +JPperf.
    terms = (above & np.uint64(ATOM_MASK) != _CATCH) & (above & np.uint64(3) != 0)
    # The outermost frame is whole where the whole stack was read.
    whole = len(places) > 1 or len(words) < _WORDS
    known = whole and _is_known(viewer, int(words[places[0]]))
    outer: list[int] = above[terms].tolist() if known else []
    try:
        reference = _reference(viewer, inner)
        if reference is None:
            return None
        server = next((word for word in inner if is_pid(word)), None)
        named, name = _named(viewer, outer)
        if server is None:
            server = named or registered.get(name or "")
        request = _request(viewer, outer)
        return Waiting(pid, server, name, reference, _timeout(inner), *request)
    except ReadRefusedError:
        return None


def _is_known(viewer: Viewer, address: int) -> bool:
    """Whether the frame that is returned to is of a module whose frames hold what is said above."""
    function = viewer.code.function(address - 1)
    return function is not None and function.module in ABOVE


def _reference(viewer: Viewer, words: list[int]) -> tuple[int, int] | None:
    """The numbers of the first reference among *words*."""
    for word in words:
        if is_boxed(word):
            header, first, second = viewer.target.memory.words(word & POINTER_MASK, 3).tolist()
            if header & _SUBTAG == _REFERENCE:
                return first, second
    return None


def _timeout(words: list[int]) -> int | None:
    found = (small(word) for word in words if is_small(word))
    return next((value for value in found if value >= 0), None)


def _named(viewer: Viewer, words: list[int]) -> tuple[int | None, str | None]:
    """The server as the caller named it, by pid or name: the last term of the frame."""
    for word in reversed(words):
        if is_pid(word):
            return word, None
        if is_atom(word):
            return None, viewer.atoms.text(word)
        if is_boxed(word):
            header, name, node = viewer.target.memory.words(word & POINTER_MASK, 3).tolist()
            if header == _PAIR and is_atom(name) and is_atom(node):
                here = viewer.atoms.text(node) in (viewer.target.node, "nonode@nohost")
                return None, viewer.atoms.text(name) if here else None
            break
    return None, None


def _request(viewer: Viewer, words: list[int]) -> tuple[str, str | None]:
    """The shape and the tag of the request, which lies before the server's name."""
    if len(words) < 2:
        return "?", None
    term = words[-2]
    head = None
    if is_boxed(term):
        header, first = viewer.target.memory.words(term & POINTER_MASK, 2).tolist()
        head = header, first
        # A tuple has its arity above six bits of zeros.
        tag = first if header >> 6 and not header & _SUBTAG else 0
    else:
        tag = term
    return viewer.terms.shape(term, head), viewer.atoms.text(tag) if is_atom(tag) else None
