# SPDX-License-Identifier: Apache-2.0
"""Constants of a target for the BPF programs: offsets, atoms, addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.layouts.checks import again, check_entry, check_ports
from scope_ebpf.beam.memory.terms import ATOM_TAG
from scope_ebpf.beam.processes.atoms import Atoms
from scope_ebpf.beam.processes.blocks import as_ever
from scope_ebpf.beam.processes.table import ALL, ProcessTable
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scope_ebpf.beam.elf.binary import Binary
    from scope_ebpf.beam.vm.target import Target

#: A call that runs for this long has a scheduler to itself for too long
#: (erl_nif, "Long-running NIFs": a NIF should return within 1 ms).
SLOW_CALL_NS = 1_000_000

#: The setting, and the struct and field whose offset it is.
_OFFSETS = {
    "process_heap": ("Process", "heap"),
    "process_htop": ("Process", "htop"),
    "process_old_heap": ("Process", "old_heap"),
    "process_old_htop": ("Process", "old_htop"),
    "process_mbuf_sz": ("Process", "mbuf_sz"),
    "process_gen_gcs": ("Process", "gen_gcs"),
    "process_abandoned_heap": ("Process", "abandoned_heap"),
    "process_sig_save": ("Process", "sig_qs.save"),
    "process_state": ("Process", "state"),
    "process_registered": ("Process", "common.u.alive.reg"),
    "process_dictionary": ("Process", "dictionary"),
    "process_module": ("Process", "u.initial.module"),
    "process_hend": ("Process", "hend"),
    "port_connected": ("Port", "connected"),
    "port_state": ("Port", "state"),
    "dist_sysname": ("DistEntry", "sysname"),
    "dist_state": ("DistEntry", "state"),
}
#: The sender in ErtsDSigSendContext, by OTP release (OTP-25.2.3 and 27.3.4.1 dist.h; seen live).
_SENDERS = {"25": 32, "27": 32}
#: By program: the VM makes these atoms when it starts, in an order of its build.
_indices: WeakKeyDictionary[Binary, dict[str, int | None]] = WeakKeyDictionary()
#: The atoms that programs compare terms with, by field of ``events.TARGET``: those that give the
#: form of a message, those that classify an exit reason, those by which the origin of a crash is
#: found. Some are made when modules are loaded, so their indices differ from VM to VM.
_ATOMS = {
    "am_gen_call": "$gen_call",
    "am_gen_cast": "$gen_cast",
    "am_system": "system",
    "am_alias": "alias",
    "am_down": "DOWN",
    "am_normal": "normal",
    "am_shutdown": "shutdown",
    "am_killed": "killed",
    "am_initial_call": "$initial_call",
    "am_line": "line",
    "am_struct": "__struct__",
}


class Constants(NamedTuple):
    """
    What programs must know of a target; 0 is unknown to them.

    ``settings`` are one ``events.SETTINGS``, without ``streamed`` and the pid namespace; ``atoms``
    one ``events.TARGET`` of which only the atoms are set; ``refused`` the reasons for what is
    unknown.
    """

    settings: NDArray[np.void]
    atoms: NDArray[np.void]
    refused: list[str]


def kernel_constants(target: Target) -> Constants:
    """What programs must know of *target*, read from its memory."""
    settings, atoms = np.zeros((), events.SETTINGS), np.zeros((), events.TARGET)
    settings["slow_call_ns"] = SLOW_CALL_NS
    send = target.binary.symbol("erts_dsig_send")
    if send:
        settings["dsig_send_start"] = send.address
        settings["dsig_send_end"] = send.address + send.size
    refused = []
    for read in (_process_offsets, _port_offsets, _connection_offsets):
        try:
            for name, value in read(target).items():
                settings[name] = value
        except ReadRefusedError as error:
            refused.append(str(error))
    try:
        for name, index in _atoms(target).items():
            atoms[name] = 0 if index is None else index << 6 | ATOM_TAG
    except ReadRefusedError as error:
        refused.append(str(error))
    return Constants(settings, atoms, list(dict.fromkeys(refused)))


def _process_offsets(target: Target) -> dict[str, int]:
    """Offsets in a process and in a message."""
    ProcessTable(target, ALL)  # checks the struct of a process
    found = _offsets(target, "Process")
    found["registered_name"] = target.layout.offset("RegProc", "name")
    found["map_subtag"] = target.layout.facts.map_subtag
    # m[2] of a message is its sender (OTP-25.2.3 and 27.3.4.1 erl_message.h).
    if as_ever(target.layout):
        found["message_sender"] = target.layout.offset("ErtsMessage", "m") + 16
    return found


def _port_offsets(target: Target) -> dict[str, int]:
    """Offsets in a port; ports open and close while they are checked."""
    again(lambda: check_ports(target))
    return _offsets(target, "Port")


def _connection_offsets(target: Target) -> dict[str, int]:
    """Offsets in the entry of another node, and in the context of a message to it."""
    check_entry(target)
    found = _offsets(target, "DistEntry")
    return found | {"dsig_from": _SENDERS.get(target.otp_release, 0)}


def _offsets(target: Target, wanted: str) -> dict[str, int]:
    return {
        name: target.layout.offset(struct, field)
        for name, (struct, field) in _OFFSETS.items()
        if struct == wanted
    }


def _atoms(target: Target) -> dict[str, int | None]:
    """The index of each atom by its setting, looked up where another VM of this program has it."""
    table, indices = Atoms(target), _indices.setdefault(target.binary, {})
    texts = table.texts(index for index in indices.values() if index is not None)
    moved = {
        name: text
        for name, text in _ATOMS.items()
        if (index := indices.get(name)) is None or texts[index] != text
    }
    if moved:
        found = table.indices(moved.values())
        indices.update({name: found.get(text) for name, text in moved.items()})
    return dict(indices)


def known(settings: NDArray[np.void]) -> list[str]:
    """The names of the known settings."""
    return [name for name in events.SETTINGS.names or () if settings[name]]


def symbol_values(target: Target, names: Collection[str]) -> dict[str, int]:
    """Where the symbols that USDT arguments name lie in the target's memory."""
    found = {name: target.binary.symbol(name) for name in names}
    return {name: target.base + symbol.address for name, symbol in found.items() if symbol}
