# SPDX-License-Identifier: Apache-2.0
"""The hooks of markers in a target: BIFs, which the VM's own table names, in every build."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scope_ebpf import events
from scope_ebpf.attach.plan import Attachment, Item, Plan
from scope_ebpf.beam.marks.marked import MarkedCode
from scope_ebpf.beam.marks.marker import find_marker, place_of
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.stacks.frame_layout import has_frame_pointers
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scope_ebpf.beam.vm.target import Target

#: Events of markers: the program of each class of them.
_EVENTS = {
    "mark_callback": {"callback": "marked_callback"},
    "mark_function": {"function": "marked_function"},
}
#: What frames have, by whether the VM says that it has frame pointers.
_FRAMES = {
    None: events.MARK_FRAMES_ANY,
    False: events.MARK_FRAMES_RETURN,
    True: events.MARK_FRAMES_LINKED,
}


class MarkHooks(NamedTuple):
    """Where markers are seen, and what their programs must know."""

    attachments: tuple[Attachment, ...]
    #: One of MARK_FRAMES.
    frames: int
    #: 1 if the id is in a register where markers of functions are seen.
    in_register: int


def mark_hooks(target: Target, atoms: Atoms, programs: Mapping[str, str], family: str) -> MarkHooks:
    """
    The hooks of markers of the classes in *programs*, which has the program of each.

    ReadRefusedError if one is not certain.
    """
    found, in_register = [], 0
    for name, program in programs.items():
        marker = find_marker(target, atoms, name)
        place = place_of(target, marker)
        in_register |= place.in_register
        address = marker.address + place.shift
        offset = target.binary.file_offset(address)
        found.append(Attachment(program, family, marker.name, offset, address))
    return MarkHooks(tuple(found), _FRAMES[has_frame_pointers(target)], in_register)


def with_marks(target: Target, plan: Plan, settings: NDArray[np.void]) -> Plan:
    """
    The same plan, with the hooks of markers if code that *target* has loaded is marked.

    Adds what the programs must know to *settings*, which are one ``events.SETTINGS``.
    """
    if target.flavor != "jit" or not settings["process_hend"]:
        return plan

    def hooked(item: Item) -> Item:
        if item.event not in _EVENTS:
            return item
        try:
            found = mark_hooks(target, _atoms_of_marked(target), _EVENTS[item.event], "marked")
        except ReadRefusedError as error:
            return Item(item.event, "unavailable", "", (), str(error))
        settings["mark_frames"] = found.frames
        settings["mark_in_register"] |= found.in_register
        name = " + ".join(hook.name for hook in found.attachments)
        return Item(item.event, "symbol", name, found.attachments, "")

    return Plan(tuple(hooked(item) for item in plan.items))


def _atoms_of_marked(target: Target) -> Atoms:
    """The atoms of *target*; ReadRefusedError if none of its code is marked."""
    atoms = Atoms(target)
    if not MarkedCode(target, atoms).any():
        raise ReadRefusedError("no code that it has loaded is marked (docs/marking.md)")
    return atoms
