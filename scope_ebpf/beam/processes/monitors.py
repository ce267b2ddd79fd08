# SPDX-License-Identifier: Apache-2.0
"""
Kinds of nodes in a process's trees and rings of monitors.

The VM keeps more there than ``process_info(P, monitors)`` shows: aliases, suspended processes and
subscriptions to nodes. Source: OTP-25.2.3 erts/emulator/beam/erl_monitor_link.h, and
collect_one_origin_monitor and collect_one_target_monitor in erl_bif_info.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import within
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import is_pid, is_port

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.layouts import Layout
    from scope_ebpf.beam.vm.target import Target

#: Flags of a node. Since OTP 28 they share a word with the kind and stand above it.
_TARGET, _EXTENDED, _SPAWN_PENDING = 1 << 0, 1 << 4, 1 << 5
_SHIFT_28, _KIND_28 = 7, 0x1F
#: Kinds of links: their numbers follow those of monitors (ERTS_LNK_TYPE_*).
_LINKS = 3
_PROC, _PORT, _TIME_OFFSET, _DIST_PROC = 0, 1, 2, 3


class Kinds(NamedTuple):
    """Numbers of the kinds of monitors (ERTS_MON_TYPE_*)."""

    remote: tuple[int, ...]
    resource: int
    nodes: tuple[int, ...]
    suspend: int
    alias: int


class Counts(NamedTuple):
    """Links and monitors of a process, by kind."""

    #: As ``process_info(P, monitors)`` lists them.
    monitors: int
    #: As ``process_info(P, monitored_by)`` lists them.
    watchers: int
    aliases: int
    #: Processes that it suspends.
    suspends: int
    #: Processes that suspend it.
    suspended_by: int
    #: Subscriptions to nodes that come and go.
    nodes: int


def kinds(target: Target) -> Kinds:
    """Give the kinds as this VM numbers them."""
    first = 5 if target.layout.facts.dist_port_monitors else 4
    remote = tuple(range(_DIST_PROC, first))
    return Kinds(remote, first, (first + 1, first + 2), first + 3, first + 4)


def kind(target: Target, nodes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the kind of each node, shape ``(n,)``."""
    if _has_type(target):
        offset = target.layout.offset("ErtsMonLnkNode", "type")
        return column(nodes, offset, np.uint16).astype(np.uint32)
    found: NDArray[np.uint32] = _word(target, nodes) & np.uint32(_KIND_28)
    return found


def fits(target: Target, nodes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """
    Return which nodes say that they and their keys lie where the layout has them.

    The first and the second node of a monitor know how far they are behind its data, and how far
    its reference, or what they lead to, is behind them (*key_offset*, the next two bytes).
    """
    layout, of = target.layout, kinds(target)
    if not as_ever(layout):
        return np.zeros(len(nodes), np.bool_)
    at = layout.offset("ErtsMonLnkNode", "offset")
    offset, key = (column(nodes, at + i, np.uint16).astype(np.int64) for i in (0, 2))
    here, is_second = kind(target, nodes), offset == layout.size("ErtsMonLnkNode")
    good = (offset == 0) | is_second
    good &= (key == layout.offset("ErtsMonLnkNode", "other")) | (
        key + offset == layout.offset("ErtsMonitorData", "ref")
    )
    good &= here <= of.alias + _LINKS
    # A link is of no kind of monitor, and neither end of it is the target.
    found: NDArray[np.bool_] = good & (
        (here > of.alias) | (_flag(target, nodes, _TARGET) == is_second)
    )
    return found


def as_ever(layout: Layout) -> bool:
    """
    Whether the data of monitors and links consist of two nodes and what follows in OTP 24 to 29.

    The reference and a count of users, then the heap of a reference, or what else a kind needs
    (OTP-25.2.3 and OTP-29.1.1 erts/emulator/beam/erl_monitor_link.h).
    """
    node, other = layout.size("ErtsMonLnkNode"), layout.offset("ErtsMonLnkNode", "other")
    expected = {
        "ErtsMonitorData": {"origin.other": other, "u.target.other": node + other}
        | {"ref": 2 * node, "refc": 2 * node + 8, "sizeof": 2 * node + 16},
        "ErtsMonitorDataHeap": {"sizeof": 2 * node + 48},
        "ErtsMonitorSuspend": {"sizeof": 2 * node + 32},
        "ErtsMonitorDataExtended": {"sizeof": 2 * node + 48},
        "ErtsELink": {"ld.refc": 2 * node, "heap": 2 * node + 32, "sizeof": 2 * node + 40},
    }
    return all(
        layout.offset(struct, name) == offset
        for struct, fields in expected.items()
        for name, offset in fields.items()
    )


def extended(target: Target, nodes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which links or monitors have terms of their own behind them."""
    return _flag(target, nodes, _EXTENDED)


def counts(target: Target, tree: NDArray[np.uint8], ring: NDArray[np.uint8]) -> Counts:
    """Count the nodes of the tree and of the ring of one process, rows of ErtsMonLnkNode."""
    nodes = np.concatenate([tree, ring])
    return Counts(*(int(one.sum()) for one in _of_each(target, nodes[fits(target, nodes)])))


def related(
    target: Target, tree: NDArray[np.uint8], ring: NDArray[np.uint8], links: NDArray[np.uint8]
) -> dict[str, NDArray[np.uint64] | None]:
    """
    Terms of the local processes and ports that a process is linked to, or has a monitor with.

    By the names of :class:`Counts`, and ``links``. What is of another node, or watched by its name,
    has no such term. None where a node does not lie as the layout has it (:func:`fits`).
    """
    nodes = np.concatenate([tree, ring])
    masks = dict(zip(Counts._fields, _of_each(target, nodes), strict=True))
    shown = ("monitors", "watchers", "suspends", "suspended_by")
    whole = fits(target, nodes).all()
    found = {name: nodes[masks[name]] if whole else None for name in shown}
    found["links"] = links if fits(target, links).all() else None
    return {name: None if rows is None else _local(target, rows) for name, rows in found.items()}


def _local(target: Target, nodes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """What *nodes* lead to, where that is a process or a port of this VM."""
    terms = column(nodes, target.layout.offset("ErtsMonLnkNode", "other"), np.uint64)
    return terms[[is_pid(term) or is_port(term) for term in terms.tolist()]]


def _of_each(target: Target, nodes: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], ...]:
    """Which of *nodes* are of each kind of :class:`Counts`."""
    of = kinds(target)
    here, own = kind(target, nodes), ~_flag(target, nodes, _TARGET)
    plain = within(here, (_PROC, _PORT, *of.remote))
    pending = _flag(target, nodes, _SPAWN_PENDING)
    return (
        own & (plain | (here == _TIME_OFFSET)) & ~pending,
        ~own & (plain | (here == of.resource)),
        here == of.alias,
        own & (here == of.suspend),
        ~own & (here == of.suspend),
        own & within(here, of.nodes),
    )


def suspenders(target: Target, ring: NDArray[np.uint8]) -> list[int]:
    """Read the pids of those that suspend a process, from the nodes of its ring."""
    here = fits(target, ring) & (kind(target, ring) == kinds(target).suspend)
    here &= _flag(target, ring, _TARGET)
    offset = target.layout.offset("ErtsMonLnkNode", "other")
    found: list[int] = column(ring, offset, np.uint64)[here].tolist()
    return found


def _flag(target: Target, nodes: NDArray[np.uint8], flag: int) -> NDArray[np.bool_]:
    shift = 0 if _has_type(target) else _SHIFT_28
    found: NDArray[np.bool_] = _word(target, nodes) & np.uint32(flag << shift) != 0
    return found


def _word(target: Target, nodes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    # The upper half of the word is the kind, where that has a field of its own.
    return column(nodes, target.layout.offset("ErtsMonLnkNode", "flags"), np.uint32)


def _has_type(target: Target) -> bool:
    return target.layout.has("ErtsMonLnkNode", "type")
