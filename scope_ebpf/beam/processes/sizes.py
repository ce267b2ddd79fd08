# SPDX-License-Identifier: Apache-2.0
"""
How much memory a process has, to the byte, as ``process_info(P, memory)`` returns it.

The sum is that of erts_process_memory (OTP-25.2.3
erts/emulator/beam/erl_process_dump.c, the same in OTP-27.3.4.1): the struct,
its heaps, links and monitors, mailbox, dictionary and rarely used data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import grouped, within
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import BOXED, POINTER_MASK, PRIMARY_MASK
from scope_ebpf.beam.memory.walk import Walk, chain, pointers, walk
from scope_ebpf.beam.processes.blocks import Blocks
from scope_ebpf.beam.processes.monitors import extended, fits, kind, kinds
from scope_ebpf.beam.processes.table import EXITING, base_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

_WORD = 8
#: Bytes: no process has more in mailbox, links and dictionary.
_MAX_BESIDES = 1 << 36
#: Bytes of binaries that one mailbox refers to at most, each as often as it is referred to.
_MAX_REFERRED = 1 << 44
#: Words of one message or one name of a remote process: larger claims are not used.
_MAX_PAYLOAD = 1 << 32
#: Links, monitors or messages of one process that are read; the size of more is estimated.
LIMIT = 2000
#: Fragments of one message that are read.
_FRAGMENTS = 64

#: ProcDict: how many words the array has, and the bytes before it (erl_process_dict.h).
_DICTIONARY_SIZE, _DICTIONARY_HEAD = 8, 24
#: A message whose payload lies behind it in the same block (ERTS_MSG_COMBINED_HFRAG).
_COMBINED = 1
#: Processes that hold one monitor or link together, at most.
_SHARED = 2
_RECEIVE_MARK = 16  # ERTS_SIG_Q_OP_RECV_MARK


class Mailboxes(NamedTuple):
    """What waits in each mailbox, shape ``(n,)``; what is not whole is an estimate."""

    #: Of messages outside of the process's heap.
    bytes: NDArray[np.float64]
    #: Of the off-heap binaries that those refer to; one counts as often as it is referred to.
    binaries: NDArray[np.float64]
    whole: NDArray[np.bool_]


class Sizes(NamedTuple):
    """Bytes of each process, shape ``(n,)``, and which are exact: the rest are estimates."""

    bytes: NDArray[np.uint64]
    exact: NDArray[np.bool_]
    #: What is in them of mailboxes.
    mailboxes: Mailboxes

    def some(self, part: NDArray[np.int64]) -> Sizes:
        """Those of the rows *part*."""
        box = self.mailboxes
        held = Mailboxes(box.bytes[part], box.binaries[part], box.whole[part])
        return Sizes(self.bytes[part], self.exact[part], held)


def memory_bytes(
    target: Target, rows: NDArray[np.void], limit: int = LIMIT, blocks: Blocks | None = None
) -> Sizes:
    """
    Return the memory of each process, bytes; *rows* need the columns LOAD and SIZES.

    A mailbox of more than *limit* messages is estimated by its first ones, and
    so are links and monitors; messages from other nodes that no process has
    decoded yet have no size that could be known. What does not fit its *blocks* is an estimate.
    """
    blocks = blocks or Blocks(target)
    layout = target.layout
    base = base_bytes(rows, layout.size("Process")).astype(np.float64)
    total = base.copy()
    exact = np.ones(len(rows), np.bool_)
    alive = rows["state"] & np.uint32(EXITING) == 0
    for part in (_links, _monitors, _watchers):
        roots = np.where(alive, rows[_ROOTS[part.__name__]], 0)
        size, whole = part(target, roots, limit, blocks)
        total += size
        exact &= whole
    waiting = mailboxes(target, rows, limit, blocks)
    total += waiting.bytes
    exact &= waiting.whole
    if layout.has("ErtsPSD", "sizeof"):
        total += np.where(rows["psd"] != 0, layout.size("ErtsPSD"), 0)
    else:
        exact &= rows["psd"] == 0
    own = rows["pointer"] + np.uint64(layout.offset("Process", "def_arg_reg"))
    total += np.where(rows["arg_reg"] != own, rows["registers"] * np.uint64(_WORD), 0)
    size, whole = _dictionaries(target, rows["dictionary"])
    # Memory that was freed and used again under the reader may claim anything.
    odd = total + size > base + _MAX_BESIDES
    return Sizes(np.where(odd, base, total + size).astype(np.uint64), exact & whole & ~odd, waiting)


def _sum(owners: NDArray[np.int64], sizes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(owners, weights=sizes, minlength=count).astype(np.float64)


_Part = tuple["NDArray[np.float64]", "NDArray[np.bool_]"]


def tree(target: Target, roots: NDArray[np.uint64], limit: int) -> Walk:
    """Read the nodes of a tree of links or monitors."""
    right, left = (
        target.layout.offset("ErtsMonLnkNode", f"node.tree.{side}") for side in ("right", "left")
    )

    def follow(nodes: NDArray[np.uint8]) -> list[NDArray[np.uint64]]:
        return [column(nodes, right, np.uint64), column(nodes, left, np.uint64)]

    found = walk(target.memory, roots, target.layout.size("ErtsMonLnkNode"), follow, limit)
    good = fits(target, found.nodes)
    # A node knows its parent, whose address has flags below.
    below = [(column(found.nodes, at, np.uint64), found.addresses) for at in (right, left)]
    good &= _leads_back(found, below, right - _WORD)
    return _without(found, good)


def _leads_back(
    found: Walk, onward: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]], back: int
) -> NDArray[np.bool_]:
    """
    Whether each node is there once, and its word at *back* is the node that leads to it.

    *onward* are pairs of nodes that are led to, and those that lead there.
    """
    there, first, inverse = grouped(found.addresses)
    times = np.bincount(inverse, minlength=len(there))
    expected = np.zeros(len(there), np.uint64)
    for target, source in onward:
        index = np.searchsorted(there, target)
        index[index == len(there)] = 0
        hit = there[index] == target if len(there) else np.zeros(len(target), np.bool_)
        expected[index[hit]] = source[hit]
    said = column(found.nodes, back, np.uint64)[first] & np.uint64(POINTER_MASK)
    good: NDArray[np.bool_] = ((said == expected) & (times == 1))[inverse]
    return good


def _without(found: Walk, good: NDArray[np.bool_]) -> Walk:
    """Say of the roots of nodes that are not *good* that they are not whole."""
    found.whole[found.owners[~good]] = False
    return found


def ring(target: Target, roots: NDArray[np.uint64], limit: int) -> Walk:
    """Read the nodes of a ring, where the last one leads to the first again."""
    next_offset = target.layout.offset("ErtsMonLnkNode", "node.list.next")
    size = target.layout.size("ErtsMonLnkNode")
    if len(roots) == 1:
        addresses = chain(target.memory, int(roots[0]), next_offset, limit, closed=True)
        nodes, read = target.memory.gather(addresses, size)
        whole = np.array([bool(read.all()) and len(addresses) <= limit])
        found = Walk(np.zeros(int(read.sum()), np.int64), addresses[read], nodes[read], whole)
        return _closed(target, found, next_offset)

    def follow(nodes: NDArray[np.uint8]) -> list[NDArray[np.uint64]]:
        onward = column(nodes, next_offset, np.uint64)
        return [np.where(within(onward, roots), 0, onward)]

    return _closed(target, walk(target.memory, roots, size, follow, limit), next_offset)


def _closed(target: Target, found: Walk, next_offset: int) -> Walk:
    """Check that each node of a ring leads back to the one before it."""
    onward = column(found.nodes, next_offset, np.uint64)
    good = fits(target, found.nodes)
    good &= _leads_back(found, [(onward, found.addresses)], next_offset + _WORD)
    return _without(found, good)


def _links(target: Target, roots: NDArray[np.uint64], limit: int, blocks: Blocks) -> _Part:
    layout = target.layout
    owners, addresses, nodes, whole = tree(target, roots, limit)
    node = layout.size("ErtsMonLnkNode")
    sizes = np.full(len(owners), float(node))
    remote = extended(target, nodes)
    # A link within the VM is a node and a number (ErtsILink), of which the VM counts the node.
    local = np.full(int((~remote).sum()), node + _WORD)
    fitting = blocks.fits("ErtsILink", addresses[~remote], local)
    whole[owners[~remote][~fitting]] = False
    if remote.any():
        full = layout.size("ErtsELink")
        offset = column(nodes, layout.offset("ErtsMonLnkNode", "offset"), np.uint16)[remote]
        data, read = target.memory.gather(addresses[remote] - offset.astype(np.uint64), full)
        shares = np.maximum(column(data, layout.offset("ErtsELink", "ld.refc"), np.uint32), 1)
        arity = column(data, layout.offset("ErtsELink", "heap"), np.uint64) >> np.uint64(6)
        arity = np.minimum(arity, 64)  # a pid of another node has three words
        whole_size = full + _WORD * arity.astype(np.int64)
        sizes[remote] = whole_size // shares
        read &= (shares <= _SHARED) & blocks.fits(
            "ErtsELink", addresses[remote] - offset, whole_size
        )
        whole[owners[remote][~read]] = False
    return _sum(owners, sizes, len(roots)), whole


def _monitors(target: Target, roots: NDArray[np.uint64], limit: int, blocks: Blocks) -> _Part:
    return _monitor_sizes(target, tree(target, roots, limit), blocks)


def _watchers(target: Target, roots: NDArray[np.uint64], limit: int, blocks: Blocks) -> _Part:
    return _monitor_sizes(target, ring(target, roots, limit), blocks)


_ROOTS = {"_links": "links", "_monitors": "monitors", "_watchers": "watchers"}


def _monitor_sizes(target: Target, found: Walk, blocks: Blocks) -> _Part:
    """Return each monitor's share: two processes may hold one block together."""
    layout = target.layout
    owners, addresses, nodes, whole = found
    offset = column(nodes, layout.offset("ErtsMonLnkNode", "offset"), np.uint16).astype(np.uint64)
    data = addresses - offset
    refc_offset = np.uint64(layout.offset("ErtsMonitorData", "refc"))
    references, read = target.memory.gather(data + refc_offset, 4)
    shares = column(references, 0, np.uint32)
    read &= (shares > 0) & (shares <= _SHARED)
    here, of = kind(target, nodes), kinds(target)
    suspend, alias = here == of.suspend, here == of.alias
    named = extended(target, nodes) & ~alias & ~suspend
    sizes = np.zeros(len(owners), np.int64)
    sizes[named], measured = _extended(target, data[named], here[named])
    read[np.flatnonzero(named)[~measured]] = False
    for struct, of_it in (
        ("ErtsMonitorSuspend", suspend),
        ("ErtsMonitorData", alias),
        ("ErtsMonitorDataExtended", named),
        ("ErtsMonitorDataHeap", ~suspend & ~alias & ~named),
    ):
        if struct != "ErtsMonitorDataExtended":
            sizes[of_it] = layout.size(struct)
        read[of_it] &= blocks.fits(struct, data[of_it], sizes[of_it])
    whole[owners[~read]] = False
    return _sum(owners, (sizes // np.maximum(shares, 1)).astype(np.float64), len(whole)), whole


def _extended(
    target: Target, data: NDArray[np.uint64], here: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Measure monitors by name and to other nodes, which carry terms of their own."""
    layout = target.layout
    size = layout.size("ErtsMonitorDataExtended")
    nodes, whole = target.memory.gather(data, size)
    of = kinds(target)
    remote = within(here, of.remote)
    words = np.full(len(data), -1, np.int64)
    for field, applies in (
        ("ref", ~within(here, of.nodes)),
        ("origin.other", remote),
        ("u.target.other", remote),
    ):
        term = column(nodes, layout.offset("ErtsMonitorData", field), np.uint64)
        boxed = applies & (term & np.uint64(PRIMARY_MASK) == BOXED)
        headers, read = target.memory.gather(term[boxed] & np.uint64(POINTER_MASK), _WORD)
        arity = np.minimum(column(headers, 0, np.uint64) >> np.uint64(6), 64)
        words[boxed] += arity.astype(np.int64) + 1
        whole[np.flatnonzero(boxed)[~read]] = False
    return size + _WORD * words, whole


def mailboxes(target: Target, rows: NDArray[np.void], limit: int, blocks: Blocks) -> Mailboxes:
    """Return what each mailbox holds, estimated from the first messages of a long one."""
    layout, memory = target.layout, target.memory
    block = layout.size("ErtsMessage")
    used = layout.offset("ErtsMessage", "hfrag.used_size")
    fragment = layout.offset("ErtsMessage", "hfrag.next")
    owners, addresses, nodes, whole = _mailboxes(target, rows, limit)
    tag = column(nodes, layout.offset("ErtsMessage", "m"), np.uint64)
    data = column(nodes, layout.offset("ErtsMessage", "data"), np.uint64)
    signal = (tag & np.uint64(3) == 0) & (tag != 0)
    marker = signal & (tag >> np.uint64(6) & np.uint64(0xFF) == _RECEIVE_MARK)
    whole[owners[signal & ~marker]] = False
    whole[owners[(tag == 0) & (data != 0)]] = False  # not decoded yet
    sizes = np.where(signal, 0.0, float(block))
    sizes[marker] = fragment + 2 * _WORD  # ErtsRecvMarker
    combined = ~signal & (data == _COMBINED)
    words = column(nodes, used, np.uint64)
    rooms = column(nodes, used - _WORD, np.uint64)  # alloc_size
    # A message without a payload has no room for one (erts_alloc_message, erl_message.h).
    odd = combined & ((words > _MAX_PAYLOAD) | (words > rooms) | (words == 0))
    whole[owners[odd]] = False
    there = combined & ~odd
    sizes_of_blocks = block + _WORD * (rooms[there].astype(np.int64) - 1)
    fitting = blocks.fits("ErtsMessage", addresses[there], sizes_of_blocks)
    whole[owners[there][~fitting]] = False
    if blocks.disproves("ErtsMessage"):
        return Mailboxes(np.zeros(len(rows)), np.zeros(len(rows)), rows["first_message"] == 0)
    if not blocks.knows("ErtsMessage"):
        whole[owners] = False
    binaries = np.where(combined, _referred(nodes, fragment), 0.0)
    sizes[combined] += _WORD * np.where(words > _MAX_PAYLOAD, 0, words)[combined]
    # The payload goes on in further fragments, or lies in fragments alone.
    chained = np.where(combined, column(nodes, fragment, np.uint64), data)
    chained[signal | (tag == 0)] = 0
    heads, starts, fragments, complete = walk(
        memory, chained, used - fragment + _WORD, pointers(0), _FRAGMENTS
    )
    words = column(fragments, used - fragment, np.uint64)
    rooms = column(fragments, used - fragment - _WORD, np.uint64)
    complete[heads[(words > _MAX_PAYLOAD) | (words > rooms)]] = False
    head = layout.offset("ErtsMessage", "hfrag.mem") - fragment
    sizes_of_blocks = head + _WORD * np.minimum(rooms, _MAX_PAYLOAD).astype(np.int64)
    complete[heads[~blocks.fits("ErlHeapFragment", starts, sizes_of_blocks)]] = False
    lengths = _WORD * np.where(words > _MAX_PAYLOAD, 0, words).astype(np.float64)
    sizes += _sum(heads, lengths, len(chained))
    binaries += _sum(heads, _referred(fragments, 0), len(chained))
    whole[owners[~complete]] = False
    held, referred = _drawn(rows, owners, sizes, whole), _drawn(rows, owners, binaries, whole)
    # Memory that was freed and used again under the reader may claim anything.
    odd = (held > _MAX_BESIDES) | (referred > _MAX_REFERRED)
    return Mailboxes(np.where(odd, 0.0, held), np.where(odd, 0.0, referred), whole & ~odd)


def _referred(fragments: NDArray[np.uint8], at: int) -> NDArray[np.float64]:
    """
    Bytes of the binaries that heap fragments, which begin at *at* of each row, refer to.

    ``off_heap.overhead`` lies behind two words (ErlHeapFragment, OTP 24 to 29 erl_message.h).
    """
    words = column(fragments, at + 2 * _WORD, np.uint64)
    found: NDArray[np.float64] = np.where(words > _MAX_PAYLOAD, 0, words).astype(np.float64)
    return found * _WORD


def _drawn(
    rows: NDArray[np.void],
    owners: NDArray[np.int64],
    sizes: NDArray[np.float64],
    whole: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """The sum of each process's messages, of which some may not have been read."""
    size, seen = _sum(owners, sizes, len(rows)), np.bincount(owners, minlength=len(rows))
    cut = ~whole & (seen > 0)
    later = _sum(owners, sizes * (_ranks(owners) >= seen[owners] // 2), len(rows))
    mean = later / np.maximum(seen - seen // 2, 1)
    size[cut] += mean[cut] * np.maximum(rows["mailbox"][cut] - seen[cut], 0)
    return size


def _ranks(owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Return the index of each message in its mailbox.

    The first ones that a process was sent may lie on its heap, where there was room, so those
    behind them are better samples of what is not read.
    """
    order = np.argsort(owners, kind="stable")
    ordered = owners[order]
    ranks = np.empty(len(owners), np.int64)
    ranks[order] = np.arange(len(owners)) - np.searchsorted(ordered, ordered)
    return ranks


def _mailboxes(target: Target, rows: NDArray[np.void], limit: int) -> Walk:
    """Read the messages of each mailbox; it is whole if it ends where its process says."""
    layout, memory, roots = target.layout, target.memory, rows["first_message"]
    block, onward = layout.size("ErtsMessage"), layout.offset("ErtsMessage", "next")
    # A message without a payload of its own ends where the payload would begin.
    least = min(layout.offset("ErtsMessage", "hfrag.next"), block)
    if len(roots) != 1:
        found = walk(memory, roots, block, pointers(onward), limit, least=least)
        return _ending(rows, found, onward)
    addresses = chain(memory, int(roots[0]), onward, limit)
    nodes, read = memory.gather(addresses, block)
    nodes[~read, :least], read[~read] = memory.gather(addresses[~read], least)
    whole = np.array([bool(read.all()) and len(addresses) <= limit])
    owners = np.zeros(int(read.sum()), np.int64)
    return _ending(rows, Walk(owners, addresses[read], nodes[read], whole), onward)


def _ending(rows: NDArray[np.void], found: Walk, onward: int) -> Walk:
    """Check that each mailbox ends with the message that its process says is the last."""
    last = np.zeros(len(rows), np.uint64)
    last[found.owners] = found.addresses  # of the repeated ones, the last
    found.whole[(last != 0) & (last + np.uint64(onward) != rows["message_end"])] = False
    return found


def _dictionaries(target: Target, roots: NDArray[np.uint64]) -> _Part:
    sizes = np.zeros(len(roots))
    whole = np.ones(len(roots), np.bool_)
    have = np.flatnonzero(roots)
    words, read = target.memory.gather(roots[have] + np.uint64(_DICTIONARY_SIZE), 4)
    sizes[have] = _DICTIONARY_HEAD + _WORD * column(words, 0, np.uint32).astype(np.float64)
    whole[have[~read]] = False
    return sizes, whole
