# SPDX-License-Identifier: Apache-2.0
"""
Processes and ports of an image, and what belongs to a process.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from space import numbers, packed
from vm_base import ATOMS, SLOTS, atom, identifier, pid, pid_text, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vm_base import Image

#: ERTS_PSFLG_* of a process that waits, one that is ready to run, one that collects garbage.
_WAITS, _READY, _COLLECTS = 1 << 12, 1 << 12 | 1 << 13, 1 << 12 | 1 << 13 | 1 << 17
_STATES: Final = {_WAITS: "waiting", _READY: "runnable", _COLLECTS: "garbage_collecting"}


def tables(image: Image) -> None:
    """
    Tables of ports and processes; the processes come later.
    """
    space = image.space
    for name, tag, data, taken, queue in (
        ("erts_proc", 0x3, list(_pids(image)), 5113, space.reserve(4 * SLOTS)),
        ("erts_port", 0x7, list(islice(numbers(61, 3), 17)), 211, 0),
    ):
        elements = space.reserve(8 * SLOTS)
        made = {}
        for one in data:
            term = identifier(image, one, tag)
            if tag == 0x3:
                made[one] = space.reserve(image.release.size("Process"))
            else:
                made[one] = image.put("Port", common__id=(term, "Q"))
            space.write(elements + 8 * slot_of(one), packed(made[one]))
        image.variable(name, _table(image, elements, len(data), taken, queue))
        image.truth[name] = {"count": len(data), "limit": SLOTS, "taken": taken, "queue": queue}
        image.truth.setdefault("rows", {})[name] = made
    if not image.hidden:
        image.variable("erts_invalid_process", bytes(image.release.size("Process")))


def _pids(image: Image) -> Iterable[int]:
    """
    23 processes, every fifth of which has a number that went round once.
    """
    round_ = 1 << (15 if image.release.otp < 26 else 28)
    for index, number in enumerate(islice(numbers(3166, 7), 23)):
        yield number + round_ * (index % 5 == 0)


def _table(image: Image, elements: int, count: int, taken: int, queue: int) -> bytes:
    lines = SLOTS // 8
    word = "I" if image.release.otp < 26 else "Q"
    return image.struct(
        "ErtsPTab",
        vola__tile__last_data=(9973, "Q"),
        vola__tile__count=(count, "I"),
        vola__tile__aid_ix=(taken, "I"),
        vola__tile__fid_ix=(taken - count, "I"),
        r__o__tab=(elements, "Q"),
        r__o__free_id_data=(queue, "Q"),
        r__o__max=(SLOTS, "I"),
        r__o__pix_mask=(SLOTS - 1, word),
        r__o__pix_cl_mask=(lines - 1, word),
        r__o__pix_cl_shift=(3, "I"),
        r__o__pix_cli_mask=(7, word),
        r__o__pix_cli_shift=(lines.bit_length() - 1, "I"),
        r__o__invalid_element=(image.space.reserve(64), "Q"),
        r__o__element_size=(image.release.size("Process"), "Q"),
    )


def processes(image: Image) -> None:
    every = image.truth["rows"]["erts_proc"]
    data = list(every)
    image.truth["processes"] = {}
    for index, (one, address) in enumerate(every.items()):
        row = _process(image, index, one, address, data)
        image.truth["processes"][row["pid"]] = row


def _process(image: Image, index: int, data: int, at: int, every: list[int]) -> dict[str, Any]:
    """
    Write one process; what the VM says of it.
    """
    space, release = image.space, image.release
    words = 233 + 144 * (index % 3)
    stack = 5 + index
    heap = space.reserve(8 * words)
    old = space.reserve(8 * 610) if index % 4 == 1 else 0
    server = index % 3 == 0
    function = "gen_server:loop/7" if server else "shop:wait/1"
    code = image.addresses[function] + 8
    space.write(heap + 8 * (words - stack), packed(code))
    state = list(_STATES)[index % 3] | 2 << 2
    name = "kernel_sup" if index == 3 else "checkout" if index == 7 else None
    memory = release.size("Process") + 8 * words + (8 * 610 if old else 0)
    fields: dict[str, tuple[int, str]] = {
        "common__id": (pid(image, data), "Q"),
        "htop": (heap + 8 * 21, "Q"),
        "stop": (heap + 8 * (words - stack), "Q"),
        "heap": (heap, "Q"),
        "hend": (heap + 8 * words, "Q"),
        "heap_sz": (words, "Q"),
        "abandoned_heap": (0, "Q"),
        "old_heap": (old, "Q"),
        "old_hend": (old + 8 * 610 if old else 0, "Q"),
        "mbuf": (0, "Q"),
        "mbuf_sz": (11 * (index == 2), "Q"),
        "off_heap__overhead": (77 * index, "Q"),
        "bin_old_vheap": (23 * (index % 2), "Q"),
        "gen_gcs": (index, "H"),
        "max_gen_gcs": (65535, "H"),
        "i": (code, "Q"),
        "current": (0, "Q"),
        "reds": (3166 + 23 * index, "Q"),
        "arity": (3, "B"),
        "arg_reg": (at + release.offset("Process", "def_arg_reg"), "Q"),
        "parent": (pid(image, every[0]), "Q"),
        "group_leader": (pid(image, every[1]), "Q"),
        "u__initial__module": (atom("erlang"), "Q"),
        "u__initial__function": (atom("apply"), "Q"),
        "u__initial__arity": (2, "Q"),
        "sig_qs__last": (at + release.offset("Process", "sig_qs.first"), "Q"),
        "state": (state, "I"),
        "lock__flags": (0, "I"),
        "flags": (0, "I"),
        "dictionary": (_dictionary(image, server=server), "Q"),
        "common__u__alive__reg": (
            image.put("RegProc", p=(at, "Q"), pt=(0, "Q"), name=(atom(name), "Q")) if name else 0,
            "Q",
        ),
    }
    memory += 8 * 11 * (index == 2) + 24 + 8 * 8
    more, bytes_besides, waiting = _belongings(image, index, every)
    fields |= more
    if index == 5:  # arguments that do not fit into the process itself
        fields |= {"arity": (9, "B"), "arg_reg": (space.reserve(80), "Q")}
        bytes_besides += 72
    space.write(at, image.struct("Process", **fields))
    call = "names_server:init/1" if server else "erlang:apply/2"
    return {
        "pid": pid_text(image, data),
        "name": name,
        "initial_call": call,
        "behaviour": "gen_server" if server else None,
        "module": "names_server" if server else None,
        "label": "audit" if server else None,
        "status": _STATES[state & ~(2 << 2)],
        "current_function": function,
        "reductions": 3166 + 23 * index,
        "message_queue_len": waiting,
        "memory_bytes": memory + bytes_besides,
        "heap_words": words,
        "stack_words": stack,
        "binary_bytes": 8 * (77 * index + 23 * (index % 2)),
        "minor_gcs": index,
        "parent": pid_text(image, every[0]),
        "group_leader": pid_text(image, every[1]),
    }


def _dictionary(image: Image, *, server: bool) -> int:
    """
    A dictionary of eight slots, in which proc_lib has noted what it was asked to run.
    """
    words = image.space.words
    slots = [0x3B] * 8
    if server:
        call = words(3 << 6, atom("names_server"), atom("init"), 1 << 4 | 0xF) | 2
        for key, value in (("$initial_call", call), ("$process_label", atom("audit"))):
            pair = words(2 << 6, atom(key), value) | 2
            slots[ATOMS.index(key) & 7] = words(pair, slots[ATOMS.index(key) & 7]) | 1
    return image.space.put(struct.pack("<4IQ8Q", 7, 8, 8, 0, 2, *slots))


def _belongings(
    image: Image, index: int, every: list[int]
) -> tuple[dict[str, tuple[int, str]], int, int]:
    """
    Messages, links, monitors and rare data: fields, their bytes, messages that wait.
    """
    space, release = image.space, image.release
    fields = dict.fromkeys(
        ("common__u__alive__links", "common__u__alive__monitors", "common__u__alive__lt_monitors",
         "sig_qs__first", "sig_qs__cont", "sig_inq__first", "psd"), (0, "Q"),
    )  # fmt: skip
    since_27 = release.has("Process", "sig_qs.mq_len")
    waiting, size = 0, 0
    if index % 4 == 2:
        first, end, size = _messages(image)
        fields |= {"sig_qs__first": (first, "Q"), "sig_qs__last": (end, "Q")}
        waiting = 3
    counts = (
        ("sig_qs__mq_len", "sig_inq__mlenoffs") if since_27 else ("sig_qs__len", "sig_inq__len")
    )
    fields |= {counts[0]: (waiting, "q"), counts[1]: (2 * (index == 6), "q")}
    waiting += 2 * (index == 6)
    if index % 6 == 1:
        fields["common__u__alive__links"] = (_links(image, every), "Q")
        size += 3 * release.size("ErtsMonLnkNode")
    if index % 6 == 3:
        tree, ring, bytes_ = _monitors(image, every)
        fields["common__u__alive__monitors"] = (tree, "Q")
        fields["common__u__alive__lt_monitors"] = (ring, "Q")
        size += bytes_
    if index % 5 == 4:
        block = release.size("ErtsPSD")
        fields["psd"] = (space.reserve(block), "Q")
        size += block
    return fields, size, waiting


def _messages(image: Image) -> tuple[int, int, int]:
    """
    Three messages: without a payload, with one in a fragment, and with one in its own block.

    The address of the first, where the last one ends the list, and their bytes.
    """
    space, release = image.space, image.release
    block, reference = release.size("ErtsMessage"), release.offset("ErtsMessage", "hfrag.next")
    mem = release.offset("ErlHeapFragment", "mem")
    words, own = 13, 5
    fragment = image.struct(
        "ErlHeapFragment", next=(0, "Q"), alloc_size=(words + 1, "Q"), used_size=(words, "Q")
    )
    payload = space.put(fragment[:mem] + bytes(8 * (words + 1)))
    combined = space.put(
        image.struct(
            "ErtsMessage",
            next=(0, "Q"),
            data=(1, "Q"),
            m=(atom("killed"), "Q"),
            hfrag__next=(0, "Q"),
            hfrag__alloc_size=(own + 1, "Q"),
            hfrag__used_size=(own, "Q"),
        )
        + bytes(8 * own)
    )
    node = combined
    for data, text in ((payload, "true"), (0, "normal")):
        fields = {"next": (node, "Q"), "data": (data, "Q"), "m": (atom(text), "Q")}
        node = space.put(image.struct("ErtsMessage", **fields)[:reference])
    end = combined + release.offset("ErtsMessage", "next")
    return node, end, 3 * block + 8 * own + 8 * words


def _node(image: Image, kind: int, flags: int = 0, **fields: tuple[int, str]) -> bytes:
    """
    A node of links or monitors; since OTP 28 its kind lies below its flags.
    """
    empty = dict.fromkeys(("node__tree__parent", "node__tree__right", "node__tree__left"), (0, "Q"))
    if image.release.has("ErtsMonLnkNode", "type"):
        what = {"type": (kind, "H"), "flags": (flags, "H")}
    else:
        what = {"flags": (kind | flags << 7, "I")}
    return image.struct("ErtsMonLnkNode", **{**empty, **what, **fields})


def _links(image: Image, every: list[int]) -> int:
    """
    A tree of three links to processes (ERTS_LNK_TYPE_PROC is 10).
    """
    space, release = image.space, image.release
    size = release.size("ErtsILink")
    key = release.offset("ErtsMonLnkNode", "other")
    top, *sides = (space.reserve(size) for _ in range(3))
    for at, other in zip((top, *sides), every, strict=False):
        fields = {"other": (pid(image, other), "Q"), "offset": (0, "H"), "key_offset": (key, "H")}
        if at == top:
            fields |= {
                "node__tree__right": (sides[0], "Q"),
                "node__tree__left": (sides[1], "Q"),
            }
        else:
            fields["node__tree__parent"] = (top | 1, "Q")
        space.write(at, _node(image, 10, **fields))
    return top


def _monitor(image: Image, kind: int, other: int, shares: int, size: int) -> tuple[int, int]:
    """
    Add the data of a monitor with both of its nodes; their addresses.
    """
    release, space = image.release, image.space
    second = release.offset("ErtsMonitorData", "u.target")
    key = release.offset("ErtsMonitorData", "ref")
    made = bytearray(space.blank(size))
    for at in (0, second):
        node = _node(
            image,
            kind,
            int(at == second),
            offset=(at, "H"),
            key_offset=(key - at, "H"),
            other=(pid(image, other), "Q"),
        )
        if at + len(node) <= size:
            made[at : at + len(node)] = node
    struct.pack_into("<I", made, release.offset("ErtsMonitorData", "refc"), shares)
    start = space.put(bytes(made))
    return start, start + second


def _monitors(image: Image, every: list[int]) -> tuple[int, int, int]:
    """
    A monitor of a process below an alias, two watchers that are a ring; their bytes.
    """
    release, space = image.release, image.space
    size, small = release.size("ErtsMonitorDataHeap"), release.size("ErtsMonitorData")
    own, _ = _monitor(image, 0, every[3], 2, size)
    tree, _ = _monitor(image, release.monitors["alias"], every[3], 1, small)
    right, parent = (
        release.offset("ErtsMonLnkNode", f"node.tree.{name}") for name in ("right", "parent")
    )
    space.write(tree + right, packed(own))
    space.write(own + parent, packed(tree | 1))
    ring = [_monitor(image, 0, one, 2, size)[1] for one in every[4:6]]
    for one, other in ((ring[0], ring[1]), (ring[1], ring[0])):
        for side in ("next", "prev"):
            at = release.offset("ErtsMonLnkNode", f"node.list.{side}")
            space.write(one + at, packed(other))
    return tree, ring[0], 3 * (size // 2) + small
