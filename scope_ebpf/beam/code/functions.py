# SPDX-License-Identifier: Apache-2.0
"""
The functions of a running VM, by pattern, and where their code begins.

Every call of a function, local or external, by apply, by a fun, by spawn or by
itself, passes the first instruction behind its ErtsCodeInfo exactly once. A
process that is preempted there goes on behind it (OTP-25.2.3
erts/emulator/beam/jit/x86/instr_common.cpp, emit_i_test_yield).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scope_ebpf.beam.code.checks import begin
from scope_ebpf.beam.memory.process_memory import column
from scope_ebpf.beam.memory.terms import ATOM_MASK, ATOM_TAG
from scope_ebpf.errors import ReadRefusedError, UsageError
from scope_ebpf.suggestions import bare, close, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scope_ebpf.beam.code.modules import Modules
    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

_MAX_FUNCTIONS = 1 << 20
_MAX_ARITY = 255
#: ``module:function``, then perhaps ``/arity``; an Elixir function as ``Module.function/arity``.
_ERLANG = re.compile(r"(?P<module>.+?):(?P<function>.+?)(?:/(?P<arity>\d+|\*))?")
_ELIXIR = re.compile(r"(?P<module>.+)\.(?P<function>[^.]+?)(?:/(?P<arity>\d+|\*))?")
#: How a function begins that only leads to C: it loads its own name, then the address of the C
#: function, of 4 bytes in a build at a fixed address (beam/jit/x86/instr_bif.cpp, emit_call_bif).
#: Bytes behind the 8 of the prologue.
_CALLS_BIF = re.compile(rb"\x48\x8d\x35\xd9\xff\xff\xff.{7}(?:\x48)?\xb9", re.DOTALL)
_PROLOGUE = 8
_LOOK = 32


@dataclass(frozen=True, slots=True)
class Function:
    """One function in one version of its module."""

    module: str
    function: str
    arity: int
    #: Address of its first instruction.
    address: int
    #: Address of its module's code (BeamCodeHeader).
    code: int
    #: Atoms of module and function.
    terms: tuple[int, int]
    #: True if it only leads to C code, so that callers need not pass it.
    is_bif: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.function}/{self.arity}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of functions: ``*`` stands for anything in its parts, None for every arity."""

    text: str
    module: str
    function: str
    arity: int | None

    def fits(self, function: Function) -> bool:
        """True if *function* matches, given that its module does."""
        return self.arity in (None, function.arity) and _like(self.function, function.function)

    def fits_module(self, name: str) -> bool:
        """True if it means the module with this name."""
        return _like(self.module, name)


def parse(text: str) -> Pattern:
    """
    Read ``gen_server:handle_call/3``, ``lists:*``, ``MyApp.Server.handle_call/3`` and the like.

    UsageError for anything else.
    """
    found = _ERLANG.fullmatch(text) or _ELIXIR.fullmatch(text)
    if found is None or found["module"].startswith("/"):
        raise UsageError(
            f"{text!r} names no function: write MODULE:FUNCTION/ARITY, such as lists:map/2 or "
            "'MyApp.Server.handle_call/3'; a * stands for anything"
        )
    module, function, arity = found["module"], found["function"], found["arity"]
    module, function = _unquoted(module), _unquoted(function)
    if module.startswith(":"):  # how Elixir writes an Erlang module
        module = module[1:]
    elif module[:1].isupper() and not module.startswith("Elixir."):
        module = f"Elixir.{module}"
    number = None if arity in (None, "*") else int(arity)
    if number is not None and number > _MAX_ARITY:
        raise UsageError(f"{text!r}: no function has more than {_MAX_ARITY} arguments")
    return Pattern(text, module, function, number)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == "'" else text


def _like(pattern: str, text: str) -> bool:
    if "*" not in pattern:
        return pattern == text
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


class Functions:
    """The functions of a VM; *modules* says which code is current."""

    def __init__(self, target: Target, atoms: Atoms, modules: Modules) -> None:
        self._memory = target.memory
        self._layout = target.layout
        self._atoms = atoms
        self._modules = modules
        self._call_bif = 0
        self._jit = target.flavor == "jit"
        if not self._jit:
            self._call_bif = self._first_word_of_self()

    def _first_word_of_self(self) -> int:
        """
        The interpreter's instruction that calls a BIF (call_bif, OTP-25.2.3 beam/emu/ops.tab).

        ``erlang:self/0`` is one, and has no other instruction.
        """
        functions = self.find(Pattern("erlang:self/0", "erlang", "self", 0))
        return self._memory.u64(functions[0].address)

    def find(self, pattern: Pattern) -> list[Function]:
        """
        Every loaded function that *pattern* means, in the current code of its module.

        UsageError, with similar names, where there is none.
        """
        names = self._modules.names()
        wanted = {name: index for name, index in names.items() if _like(pattern.module, name)}
        if not wanted:
            modules = map(bare, close(pattern.module, names))
            raise UsageError(
                f"no module {bare(pattern.module)} is loaded (in a shell, a module is loaded when "
                f"it is first called){did_you_mean(modules)}"
            )
        found: list[Function] = []
        near: list[Function] = []
        for code in self._modules.code(wanted.values()).values():
            header = code.current or next(iter(code.others), 0)
            if not header:
                continue
            functions = self.of(header)
            found += [f for f in functions if pattern.fits(f)]
            near += [f for f in functions if f.function == pattern.function] or _like_it(
                pattern.function, functions
            )
        if not found:
            like = did_you_mean(map(str, near[:5]))
            raise UsageError(f"no loaded function fits {pattern.text}{like}")
        return sorted(found, key=str)

    def of(self, header: int) -> list[Function]:
        """
        The functions of the code that starts at *header*.

        ReadRefusedError if there is none, or not any more.
        """
        layout = self._layout
        starts = self._starts(header)
        size = layout.size("ErtsCodeInfo")
        rows, good = self._memory.gather(starts, size + _LOOK)
        rows, starts = rows[good], starts[good]
        if self._jit and 2 * int(begin(rows[:, size:]).sum()) <= len(rows):
            raise ReadRefusedError(
                f"process {self._memory.pid}: the check that functions begin behind their names "
                f"does not hold, so {layout} does not fit and no function is found"
            )
        module = column(rows, layout.offset("ErtsCodeInfo", "mfa.module"), np.uint64)
        name = column(rows, layout.offset("ErtsCodeInfo", "mfa.function"), np.uint64)
        # Since OTP 26 the words around it may use the upper half of the arity's word.
        arity = column(rows, layout.offset("ErtsCodeInfo", "mfa.arity"), np.uint32)
        fits = (module & np.uint64(ATOM_MASK) == ATOM_TAG) & (
            name & np.uint64(ATOM_MASK) == ATOM_TAG
        )
        fits &= arity <= _MAX_ARITY
        texts = self._atoms.texts(int(t) >> 6 for t in np.concatenate([module, name])[[*fits] * 2])
        found = []
        for row in np.flatnonzero(fits):
            terms = int(module[row]), int(name[row])
            first, second = (texts[term >> 6] for term in terms)
            if first is None or second is None:
                continue
            code = rows[row][size:].tobytes()
            found.append(
                Function(
                    *(first, second, int(arity[row]), int(starts[row]) + size, header, terms),
                    is_bif=self._leads_to_c(code),
                )
            )
        return found

    def _leads_to_c(self, code: bytes) -> bool:
        if self._call_bif:
            return int.from_bytes(code[:8], "little") == self._call_bif
        return _CALLS_BIF.match(code, _PROLOGUE) is not None

    def again(self, function: Function, header: int) -> Function | None:
        """The same function in other code of its module; None where that has none."""
        key = (function.terms, function.arity)
        try:
            return next((f for f in self.of(header) if (f.terms, f.arity) == key), None)
        except ReadRefusedError:
            return None  # purged, or not there yet

    def _starts(self, header: int) -> NDArray[np.uint64]:
        layout = self._layout
        count = self._memory.u64(header + layout.offset("BeamCodeHeader", "num_functions"))
        if not 0 < count < _MAX_FUNCTIONS:
            raise ReadRefusedError(f"the code at {header:#x} claims {count} functions")
        starts_at = header + layout.offset("BeamCodeHeader", "functions")
        starts = self._memory.words(starts_at, count)
        if (starts < header).any():
            raise ReadRefusedError(f"the functions of the code at {header:#x} are not in it")
        return starts


def _like_it(name: str, functions: list[Function]) -> list[Function]:
    """Those of *functions* whose names are like *name*."""
    found = close(name, [function.function for function in functions])
    return [function for function in functions if function.function in found]
