# SPDX-License-Identifier: Apache-2.0
"""What ``server.bpf.c`` must know of a target: offsets and atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.memory.terms import ATOM_TAG
from scope_ebpf.beam.processes.blocks import as_ever
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.view import Viewer

_OFFSETS = {
    "process_sig_save": ("Process", "sig_qs.save"),
    "process_dictionary": ("Process", "dictionary"),
    "process_hend": ("Process", "hend"),
    "process_stop": ("Process", "stop"),
    "process_state": ("Process", "state"),
    "process_module": ("Process", "u.initial.module"),
    "message_term": ("ErtsMessage", "m"),
}
_ATOMS = {
    "am_gen_call": "$gen_call",
    "am_gen_cast": "$gen_cast",
    "am_alias": "alias",
    "am_down": "DOWN",
    "am_notify": "notify",
    "am_system": "system",
    "am_timeout": "timeout",
    "am_normal": "normal",
    "am_initial_call": "$initial_call",
    "am_init": "init",
    "am_supervisor": "supervisor",
    "am_erlang": "erlang",
    "am_proc_lib": "proc_lib",
}


def server_settings(viewer: Viewer) -> NDArray[np.void]:
    """
    The settings for the target of *viewer*, one ``events.SERVER_SETTINGS``.

    ReadRefusedError where its structs are not known, or it has no such atom: one without
    ``$gen_call`` has loaded no server.
    """
    target = viewer.target
    if not as_ever(target.layout):
        raise ReadRefusedError("messages of this release are laid out in another way")
    settings = np.zeros((), events.SERVER_SETTINGS)
    settings["tgid"] = target.pid
    for name, (struct, field) in _OFFSETS.items():
        settings[name] = target.layout.offset(struct, field)
    indices = viewer.atoms.indices(_ATOMS.values())
    for name, text in _ATOMS.items():
        index = indices.get(text)
        if index is None:
            raise ReadRefusedError(f"the VM has no atom {text}")
        settings[name] = index << 6 | ATOM_TAG
    return settings
