# SPDX-License-Identifier: Apache-2.0
"""
The data behind the pointers of one process, read as of one moment.

A process goes on while it is read: it rewrites its stack, its heap moves, its messages are taken
and their memory is used again. So everything is copied as words between two readings of the
struct, and named afterwards. A part whose pointers stood still meanwhile is of one moment; if one
did not, all is read again, :data:`ATTEMPTS` times, and then the result says that it moved.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.beam.memory.terms import is_atom, is_boxed
from scope_ebpf.beam.processes.blocks import as_ever
from scope_ebpf.beam.processes.sizes import LIMIT, ring, tree
from scope_ebpf.beam.processes.table import (
    ATTEMPTS,
    COLLECTING,
    DIRTY_RUNNING,
    DIRTY_RUNNING_SYS,
    RUNNING,
    RUNNING_SYS,
)
from scope_ebpf.beam.vm.schedulers import running_nifs
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scope_ebpf.beam.memory.walk import Walk
    from scope_ebpf.beam.processes.view import Viewer
    from scope_ebpf.beam.vm.target import Target

#: Messages whose tags are read, and nodes of its queues that are read for them: signals that
#: are no messages lie between.
MAX_MESSAGES = 10
_MAX_NODES = 10 * MAX_MESSAGES
#: Elements of the largest tuple in which OTP wraps what it sends: {'DOWN', _, _, _, Reason}.
_MAX_WRAPPED = 5
#: Words of stack.
_MAX_STACK = 1 << 16
_WORD = 8
#: The token of a message that is not traced (with dynamic trace an atom), and the header of others
#: (OTP-25.2.3 erts/emulator/beam/erl_message.h, SEQ_TRACE_TOKEN).
_NIL, _FIVE = 0x3B, 5 << 6
_ACTIVE = RUNNING | RUNNING_SYS | DIRTY_RUNNING | DIRTY_RUNNING_SYS
#: Fields that change when a process collects, and so moves its terms.
HEAPS = ("heap", "hend", "old_heap", "minor_gcs", "fragment_words")
#: Fields that must not change for each part to be of one moment.
_STANDS = {
    "stack": (*HEAPS, "stop", "htop", "reductions", "pc", "current"),
    "messages": (*HEAPS, "first_message", "middle_message", "outer_message", "mailbox"),
    "links": ("links", "reductions"),
    "monitors": ("monitors", "reductions"),
    "watchers": ("watchers", "reductions"),
}
_QUEUES = ("first_message", "middle_message", "outer_message")


class Message(NamedTuple):
    """A message: its term, and for a boxed one the header and the word behind it."""

    term: int
    head: tuple[int, int] | None
    #: The last element of a small tuple, and what it points to if it is boxed.
    last: tuple[int, tuple[int, int] | None] | None = None


class Moment(NamedTuple):
    """One process, and copies of what its struct leads to."""

    #: Its row, shape ``(1,)``.
    rows: NDArray[np.void]
    #: True if it was in a native function: its innermost function is the one that the VM noted
    #: before the call.
    native: bool
    #: Words of its stack.
    stack: NDArray[np.uint64]
    messages: tuple[Message, ...]
    links: Walk
    monitors: Walk
    watchers: Walk
    #: Names of the parts that are not of one moment.
    moved: tuple[str, ...]


def moments(viewer: Viewer, rows: NDArray[np.void]) -> Iterator[Moment]:
    """
    Read the process of *rows*, shape ``(1,)``, at most ATTEMPTS times.

    Ends early when it has ended; then the last reading is of no process.
    """
    for _ in range(ATTEMPTS):
        fresh = viewer.table.one(int(rows["id"][0]))
        if not len(fresh):
            return
        yield _capture(viewer, fresh)


def stood(before: NDArray[np.void], after: NDArray[np.void], names: Iterable[str]) -> bool:
    """True if it is the same process, is not collecting, and all *names* are unchanged."""
    if not len(after) or int(before["state"][0] | after["state"][0]) & COLLECTING:
        return False
    return all(before[name][0] == after[name][0] for name in ("id", "pointer", *names))


def reread(read: Callable[[], NDArray[np.void]]) -> tuple[NDArray[np.void], bool]:
    """
    Read the row of a process again; also true if it may have run just before.

    A row is copied from front to back, and a process updates its counters before its state, which
    lies further back. So one copy shows that it rests, and the next its counters until then.
    """
    first = read()
    after = read() if len(first) else first
    return after, not len(after) or running(first) or running(after)


def running(rows: NDArray[np.void]) -> bool:
    """True if the process is on a scheduler, and so may change without a trace."""
    return bool(int(rows["state"][0]) & _ACTIVE)


def _capture(viewer: Viewer, rows: NDArray[np.void]) -> Moment:
    target, row = viewer.target, rows[0]
    active = running(rows)
    native = running_nifs(target).get(int(row["pointer"]), 0) if active else 0
    words = _stack(target, row)
    nodes, doubt = _nodes(target, row)
    messages = () if doubt else _messages(target, nodes)
    walks = _walks(target, rows)
    again = walks if not active else _walks(target, rows)
    after, busy = reread(lambda: viewer.table.one(int(row["id"])))
    active |= busy
    if native and running_nifs(target).get(int(row["pointer"]), 0) != native:
        native = 0
    moved = [part for part, names in _STANDS.items() if not stood(rows, after, names)]
    if active and not native and "stack" not in moved:
        moved.append("stack")  # what is above its stack pointer changes with every call
    if _nodes(target, row)[0] != nodes and "messages" not in moved:
        moved.append("messages")
    if doubt and "messages" not in moved:
        raise ReadRefusedError(doubt)
    moved += [name for name in walks if name not in moved and not _same(walks[name], again[name])]
    links, monitors, watchers = walks.values()
    return Moment(rows, bool(native), words, messages, links, monitors, watchers, tuple(moved))


def _stack(target: Target, row: np.void) -> NDArray[np.uint64]:
    try:
        return target.memory.words(int(row["stop"]), min(int(row["stack_words"]), _MAX_STACK))
    except ReadRefusedError:
        return np.empty(0, np.uint64)


def _nodes(target: Target, row: np.void) -> tuple[list[tuple[int, int]], str | None]:
    """
    Address and term of what waits in its queues, as many as MAX_MESSAGES messages take.

    Also why these are no messages, unless they were taken while they were read: then what lay there
    may be anything.
    """
    layout, memory = target.layout, target.memory
    onward, body = layout.offset("ErtsMessage", "next"), layout.offset("ErtsMessage", "m")
    found: list[tuple[int, int]] = []
    messages = with_token = 0
    for queue in _QUEUES:
        node = int(row[queue])
        while node and len(found) < _MAX_NODES and messages < MAX_MESSAGES:
            try:
                raw = memory.read(node, body + 2 * _WORD)
            except ReadRefusedError:
                break
            term, token = struct.unpack_from("<2Q", raw, body)
            found.append((node, term))
            messages += is_message(term)
            with_token += is_message(term) and _is_token(target, token)
            (node,) = struct.unpack_from("<Q", raw, onward)
    doubt = None
    if messages > 2 * with_token or (found and not as_ever(layout)):
        doubt = (
            f"process {target.pid} (OTP {target.otp_release}): the check that messages have a "
            f"sequential trace token holds for {with_token} of {messages}, so {layout} does not "
            "fit and no message is read"
        )
    return found, doubt


def _is_token(target: Target, term: int) -> bool:
    """Whether this may be the token of a message: none as a rule, or a tuple of five."""
    if not is_boxed(term):
        return term == _NIL or (target.usdt and is_atom(term))
    head = _head(target, term)
    return head is not None and head[0] == _FIVE


def is_message(term: int) -> bool:
    """True if this is a message: a header is another signal, 0 one that is still packed."""
    return term & 3 != 0 or term == 0


def _messages(target: Target, nodes: list[tuple[int, int]]) -> tuple[Message, ...]:
    found = []
    for _, term in nodes:
        if is_message(term):
            head = _head(target, term) if term and is_boxed(term) else None
            found.append(Message(term, head, _last(target, term, head) if head else None))
    return tuple(found[:MAX_MESSAGES])


def _last(
    target: Target, term: int, head: tuple[int, int]
) -> tuple[int, tuple[int, int] | None] | None:
    """The last element of a tuple of 2 to _MAX_WRAPPED, and its own head if it is boxed."""
    arity, kind = head[0] >> 6, head[0] & 0x3F
    if kind or not 2 <= arity <= _MAX_WRAPPED:
        return None
    try:
        (found,) = target.memory.words((term & ~7) + arity * _WORD, 1).tolist()
    except ReadRefusedError:
        return None
    return found, _head(target, found) if is_boxed(found) else None


def _head(target: Target, term: int) -> tuple[int, int] | None:
    try:
        header, first = target.memory.words(term & ~7, 2).tolist()
    except ReadRefusedError:
        return None
    return header, first


def _walks(target: Target, rows: NDArray[np.void]) -> dict[str, Walk]:
    return {
        "links": tree(target, rows["links"], LIMIT),
        "monitors": tree(target, rows["monitors"], LIMIT),
        "watchers": ring(target, rows["watchers"], LIMIT),
    }


def _same(one: Walk, other: Walk) -> bool:
    return np.array_equal(one.addresses, other.addresses) and np.array_equal(one.nodes, other.nodes)
