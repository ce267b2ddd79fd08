# SPDX-License-Identifier: Apache-2.0
"""
Which telemetry a VM has loaded, and what the BPF programs must know of the VM.

``telemetry:execute/3`` looks up the handlers of each event, if there are any or not. Up to 1.3 it
calls ``ets:lookup(telemetry_handler_table, Name)`` (telemetry v0.4.0 to v1.3.0,
src/telemetry_handler_table.erl, ``list_for_event/1``), since 1.4 ``persistent_term:get(telemetry,
Default)`` first (v1.4.0, the same function, ``impl_get/0``); after ``telemetry:persist/0`` only
that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf import events
from scope_ebpf.beam.code.functions import Functions, Pattern
from scope_ebpf.beam.code.modules import Modules
from scope_ebpf.errors import ReadRefusedError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.functions import Function
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: The module of events, which is also the key of the persistent term; its table of handlers.
MODULE, TABLE = "telemetry", "telemetry_handler_table"
#: The function that every event passes, and its arity.
_EXECUTE, _ARITY = "execute", 3
#: A function that the module has since 1.4. Other modules of 1.4 may be loaded by the first event.
_SINCE_1_4 = "persist"


@dataclass(frozen=True, slots=True)
class Library:
    """The telemetry of a VM: the BPF program that sees its events, and the functions it is for."""

    program: str
    functions: tuple[str, ...]


#: By whether the handlers are found through persistent_term.
_ETS = Library("telemetry_ets", ("ets_lookup_2",))
_TERM = Library("telemetry_term", ("persistent_term_get_1", "persistent_term_get_2"))


def loaded(target: Target, atoms: Atoms) -> Library | None:
    """Find the telemetry of *target*; None if it has not loaded any. Raises ReadRefusedError."""
    modules = Modules(target, atoms)
    names = modules.names()
    if MODULE not in names or TABLE not in names:
        return None
    header = modules.code([names[MODULE]])[names[MODULE]].current
    functions = Functions(target, atoms, modules).of(header) if header else []
    return _TERM if any(one.function == _SINCE_1_4 for one in functions) else _ETS


def execute(target: Target, atoms: Atoms) -> tuple[Functions, Modules, Function]:
    """
    ``telemetry:execute/3`` of *target*, and by what it can be followed when code is loaded.

    ReadRefusedError where a breakpoint cannot stop at it, or code cannot be read.
    """
    if target.flavor != "jit":
        raise ReadRefusedError("the interpreter's code is data, at which no breakpoint stops")
    modules = Modules(target, atoms)
    functions = Functions(target, atoms, modules)
    try:
        (function,) = functions.find(Pattern("", MODULE, _EXECUTE, _ARITY))
    except UsageError as error:
        raise ReadRefusedError(str(error)) from None
    return functions, modules, function


class Everywhere:
    """
    Where ``telemetry:execute/3`` of *target* is, also in code that is perhaps no longer used.

    A VM that hides its functions hides as well which of its tables of modules is in use. Raises as
    :func:`execute`. Not thread-safe.
    """

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._memory, self._name_size = target.memory, target.layout.size("ErtsCodeInfo")
        self._at_module = target.layout.offset("ErtsCodeInfo", "mfa.module")
        self._functions, self._modules, self._function = execute(target, atoms)
        #: By code the address of the function in it.
        self._found: dict[int, int] = {}

    def addresses(self) -> list[int]:
        """
        Its first instruction in the code of every table, in order; some system calls.

        ReadRefusedError where there is none, or code cannot be read at this moment.
        Memory of code that was unloaded may have other code by now, so each is looked at again.
        """
        module = self._function.terms[0] >> 6
        tables = self._modules.code([module])[module].tables
        headers = {header for table in tables for header in table} - {0}
        known = {header: self._found[header] for header in headers & self._found.keys()}
        self._found = {header: at for header, at in known.items() if self._is_there(at)}
        for header in sorted(headers - self._found.keys()):
            if one := self._functions.again(self._function, header):
                self._found[header] = one.address
        if not self._found:
            raise ReadRefusedError("no code of telemetry can be read at this moment")
        return sorted({*self._found.values()})

    def _is_there(self, address: int) -> bool:
        """Whether the function's name is before *address* still."""
        name = np.array([address - self._name_size + self._at_module], np.uint64)
        rows, good = self._memory.gather(name, 24)
        module, function, arity = rows.view(np.uint64)[0].tolist()
        # Since OTP 26 the upper half of the arity's word may be used for something else.
        found = (module, function), arity & 0xFFFFFFFF
        return bool(good[0]) and found == (self._function.terms, self._function.arity)


def settings(target: Target, atoms: Atoms, spans: int = 0) -> NDArray[np.void]:
    """
    The settings of the programs for *target*, one ``events.TELEMETRY_SETTINGS``.

    With *spans* 1 each event that has a specification becomes a record, with 2 each event.

    ReadRefusedError where the layout of the VM's structs is not known.
    """
    if target.binary.machine != "x64":
        raise ReadRefusedError(f"{target.binary.machine} is not supported yet, only x86_64 is")
    found = np.zeros((), events.TELEMETRY_SETTINGS)
    found["tgid"], found["spans"] = target.pid, spans
    found["process_stop"] = target.layout.offset("Process", "stop")
    found["map_subtag"] = target.layout.facts.map_subtag
    found["bits"] = target.layout.facts.heap_bits
    found["table"], found["term"], found["execute"] = (
        atoms.term(name) or 0 for name in (TABLE, MODULE, _EXECUTE)
    )
    return found
