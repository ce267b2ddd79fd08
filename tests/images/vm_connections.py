# SPDX-License-Identifier: Apache-2.0
"""
Connections of an image, and the functions that every emulator exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from space import BASE, SECTIONS, packed
from vm_base import atom, pid

if TYPE_CHECKING:
    from vm_base import Image


def connections(image: Image) -> None:
    """
    Three visible nodes, of which one is about to go, a hidden one and one that is being connected.
    """
    suspended = [
        image.put("ErtsProcList", u__pid=(pid(image, one), "Q"), next=(0, "Q"))
        for one in list(image.truth["rows"]["erts_proc"])[:2]
    ]
    for one, other in zip(suspended, reversed(suspended), strict=True):
        image.space.write(one + image.release.offset("ErtsProcList", "next"), packed(other))
    visible = _entry(image, "shop@node3", 2, 97)
    visible = _entry(image, "shop@node2", 3, 1_000_003, busy=1, onward=visible)
    visible = _entry(image, "shop@node1", 2, 3_166, busy=1, suspended=suspended[0], onward=visible)
    hidden = _entry(image, "hidden@node", 2, 23)
    coming = _entry(image, "coming@node", 1, 11)
    lists = {"visible": visible, "hidden": hidden, "pending": coming}
    for name, entry in lists.items():
        image.variable(f"erts_{name}_dist_entries", packed(entry))
    this = _entry(image, "nonode@nohost", 0, 0)
    node = image.put("ErlNode", sysname=(atom("nonode@nohost"), "Q"), dist_entry=(this, "Q"))
    image.variable("erts_this_node", packed(node))
    image.truth["connections"] = {
        "nodes": (2, 1), "queued": 97 + 3_166 + 23 + 11, "busy": 1, "pending": 1,
    }  # fmt: skip


def _entry(
    image: Image,
    name: str,
    state: int,
    queued: int,
    *,
    busy: int = 0,
    suspended: int = 0,
    onward: int = 0,
) -> int:
    """
    A connection; what its channel alone has queued is less than all where both are counted.
    """
    release, space = image.release, image.space
    size = release.size("DistEntry")
    fields = {
        "next": (onward, "Q"),
        "sysname": (atom(name), "Q"),
        "state": (state, "I"),
        "qflgs": (busy, "I"),
        "suspended": (suspended, "Q"),
        "in": (5, "Q"),
        "out": (7, "Q"),
    }
    if release.has("DistEntry", "total_qsize"):
        fields |= {"total_qsize": (queued, "Q"), "qsize": (queued // 2, "Q")}
    else:
        fields["qsize"] = (queued, "Q")
    # It lies in a binary of the VM's, whose size counts 24 bytes before it.
    head = space.reserve(32 + size)
    space.write(head, packed(size + 24, 0, 0, 0) + image.struct("DistEntry", **fields))
    return head + 32


def functions(image: Image) -> None:
    """
    Functions for native code, which every VM shows, and the variables that their code names.
    """
    at = SECTIONS[".text"][0] + 0x800
    for number, (name, table, member) in enumerate(
        (
            ("enif_is_process_alive", "erts_proc", ("ErtsPTab", "r.o.tab")),
            ("enif_is_port_alive", "erts_port", ("ErtsPTab", "r.o.tab")),
            ("enif_get_atom", "erts_atom_table", ("IndexTable", "seg_table")),
        )
    ):
        start = at + 64 * number
        image.file.symbols[name] = (start, 64)
        image.file.code[start] = bytes(64)
        variable = image.addresses[table] + image.release.offset(*member) - BASE
        image.file.named[start] = [variable, SECTIONS[".bss"][0] + 8]
