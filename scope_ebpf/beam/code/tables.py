# SPDX-License-Identifier: Apache-2.0
"""
From a code address to module, function, arity, file and line.

The VM keeps the address ranges of all loaded modules, three times over: one
set is in use and the next is prepared while code is loaded. Each range starts
with a header that leads to the module's functions and lines. The same tables
serve the JIT and the interpreter.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scope_ebpf.arrays import distinct_rows
from scope_ebpf.beam.code.checks import failed
from scope_ebpf.beam.memory.process_memory import UnreadableMemoryError
from scope_ebpf.beam.memory.terms import (
    ATOM_MASK,
    ATOM_TAG,
    LIST,
    POINTER_MASK,
    PRIMARY_MASK,
    is_atom,
    is_small,
    small,
)
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scope_ebpf.beam.processes.atoms import Atoms
    from scope_ebpf.beam.vm.target import Target

#: Sets of ranges (ERTS_NUM_CODE_IX, OTP-25.2.3 erts/emulator/beam/code_ix.h).
_SETS = 3
#: Readings of the set in use, which becomes another one when code is loaded meanwhile.
_TRIES = 3
#: More modules, functions of one module or characters of a file name than any VM has.
_MAX_RANGES = 1 << 20
_MAX_FUNCTIONS = 1 << 20
_MAX_NAME = 1024
_MAX_ATTRIBUTES = 1 << 16
#: Modules whose tables are kept. A large application has some 2,000.
CACHE = 4096
#: Loaded modules that the layout is checked with.
_SAMPLE = 6
#: A location packs a file's number above 24 bits of line (OTP-25.2.3 beam_code.h).
_LINE_BITS = 24


class Mfa(NamedTuple):
    """A function; it prints as Erlang writes it, with its line where that is known."""

    module: str
    function: str
    arity: int
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.function}/{self.arity}"

    @property
    def location(self) -> str:
        """``file:line``, or ""."""
        return f"{self.file}:{self.line}" if self.file else ""


class _Module(NamedTuple):
    """One loaded module: its range, its header as it was read, its functions' starts."""

    start: int
    end: int
    header: bytes
    functions: NDArray[np.uint64]


class CodeMap:
    """
    The code of one VM. :meth:`refresh` takes in what was loaded or purged since.

    ReadRefusedError if most of the modules that are looked at do not fit.
    """

    def __init__(self, target: Target, atoms: Atoms) -> None:
        self._memory = target.memory
        self._layout = target.layout
        self._atoms = atoms
        self._ranges_at = target.address("r")
        self._active_at = target.find("the_active_code_index")
        self._modules: dict[int, _Module] = {}
        self._starts = self._ends = np.empty(0, np.uint64)
        self._functions: dict[int, Mfa | None] = {}
        self._headers: dict[str, int] = {}
        #: Grows whenever code was loaded or purged.
        self.generation = 0
        self.refresh()
        self._verify()

    def _verify(self) -> None:
        """Check the layout with some modules; code may be purged meanwhile, so most must fit."""
        count = min(_SAMPLE, len(self))
        chosen = np.linspace(0, len(self) - 1, count).astype(np.int64)
        wrong = [why for why in map(self._misfit, chosen.tolist()) if why]
        if 2 * len(wrong) > count:
            raise ReadRefusedError(
                f"process {self._memory.pid}: the check that {wrong[-1]} holds for "
                f"{count - len(wrong)} of {count} modules, so {self._layout} does not fit and no "
                "function is named"
            )

    def _misfit(self, index: int) -> str | None:
        start, end = int(self._starts[index]), int(self._ends[index])
        try:
            module = self._module(start, end)
        except ReadRefusedError:
            return "functions of a module are in order"
        return failed(self._memory, self._layout, module.header, module.functions)

    def refresh(self) -> None:
        """Read the ranges again; forget every module that is not what it was."""
        ranges = _without_overlaps(distinct_rows(self._ranges()))
        before = np.stack([self._starts, self._ends], axis=1)
        if not np.array_equal(before, ranges):
            self.generation += 1
            self._functions.clear()  # also what was at an address where there was no code
        self._starts, self._ends = ranges[:, 0], ranges[:, 1]
        size = self._layout.offset("BeamCodeHeader", "functions") + 8
        kept = list(self._modules.values())[-CACHE:]
        headers, _ = self._memory.gather(np.array([m.start for m in kept], np.uint64), size)
        current = set(zip(self._starts.tolist(), self._ends.tolist(), strict=True))
        modules = {
            module.start: module
            for module, header in zip(kept, headers, strict=True)
            if (module.start, module.end) in current and header.tobytes() == module.header
        }
        if len(modules) < len(self._modules):
            self._functions.clear()
            self.generation += 1
        self._modules = modules
        self._headers = {}

    def __len__(self) -> int:
        """Return the number of ranges of code."""
        return len(self._starts)

    def inside(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """True for each address in loaded code, shape of *addresses*."""
        if not len(self._starts):
            return np.zeros(len(addresses), np.bool_)
        index = np.searchsorted(self._starts, addresses, side="right") - 1
        found: NDArray[np.bool_] = (index >= 0) & (addresses < self._ends[index])
        return found

    def functions(self, addresses: Iterable[int]) -> dict[int, Mfa | None]:
        """Name the function at each code address, without lines; None where there is no code."""
        return {address: self.function(address) for address in set(addresses)}

    def function(self, address: int) -> Mfa | None:
        """Name the function at a code address, without its line."""
        if address not in self._functions:
            if len(self._functions) > 16 * CACHE:
                self._functions.clear()
            try:
                self._functions[address] = self._lookup(address, lines=False)
            except ReadRefusedError:
                return None  # code that was purged under the reader; not remembered
        return self._functions[address]

    def location(self, address: int) -> Mfa | None:
        """Name the function at a code address, with file and line where the module has them."""
        try:
            return self._lookup(address, lines=True)
        except ReadRefusedError:
            return None

    def bounds(self, address: int) -> tuple[int, int] | None:
        """Return where the function around a code address begins and ends."""
        index = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if index < 0 or address >= int(self._ends[index]):
            return None
        try:
            functions = self._module(int(self._starts[index]), int(self._ends[index])).functions
        except ReadRefusedError:
            return None
        index = int(np.searchsorted(functions, np.uint64(address), side="right")) - 1
        if not 0 <= index < len(functions) - 1:
            return None
        return int(functions[index]), int(functions[index + 1])

    def mfa(self, address: int) -> Mfa | None:
        """Read an ErtsCodeMFA: two atoms and a number."""
        try:
            module, function, arity = self._memory.words(address, 3).tolist()
            # Since OTP 26 the words around it may use the upper half of the arity's word.
            if is_atom(module) and is_atom(function) and arity & 0xFFFFFFFF < 256:
                texts = self._atoms.texts((module >> 6, function >> 6))  # both by one reading
                names = texts[module >> 6], texts[function >> 6]
                if names[0] is not None and names[1] is not None:
                    return Mfa(names[0], names[1], arity & 0xFFFFFFFF)
        except ReadRefusedError:
            pass
        return None

    def attributes(self, module: str) -> bytes:
        """
        Read the attributes of a loaded module, in the external term format.

        ReadRefusedError if it is not loaded, or claims more than a module has.
        """
        if not self._headers:  # since the last refresh
            self._headers = self._names()
        start = self._headers.get(module)
        if start is None:
            raise ReadRefusedError(f"there is no module {module}")
        attributes = start + self._layout.offset("BeamCodeHeader", "attr_ptr")
        address, size = self._memory.words(attributes, 2).tolist()
        if size > _MAX_ATTRIBUTES:
            raise ReadRefusedError(f"module {module} claims {size} bytes of attributes")
        return self._memory.read(address, size)

    def _names(self) -> dict[str, int]:
        """Return where each module starts, by the name in its first function."""
        first = np.uint64(self._layout.offset("BeamCodeHeader", "functions"))
        module_offset = np.uint64(self._layout.offset("ErtsCodeInfo", "mfa.module"))
        functions, _ = self._memory.gather(self._starts + first, 8)
        terms, _ = self._memory.gather(functions.view(np.uint64)[:, 0] + module_offset, 8)
        names = terms.view(np.uint64)[:, 0]
        atoms = names & np.uint64(ATOM_MASK) == ATOM_TAG
        starts = dict(
            zip((names[atoms] >> np.uint64(6)).tolist(), self._starts[atoms].tolist(), strict=True)
        )
        texts = self._atoms.texts(starts)
        return {text: starts[index] for index, text in texts.items() if text is not None}

    def _ranges(self) -> NDArray[np.uint64]:
        """Read the set that is in use, or all where that is not known; shape ``(n, 2)``."""
        if self._active_at is None:
            return np.concatenate([self._set(index) for index in range(_SETS)])
        for _ in range(_TRIES - 1):
            active = self._memory.u32(self._active_at)
            with suppress(ReadRefusedError):
                found = self._set(active % _SETS)
                if self._memory.u32(self._active_at) == active:
                    return found
        return self._set(self._memory.u32(self._active_at) % _SETS)

    def _set(self, index: int) -> NDArray[np.uint64]:
        """Read one set of ranges, shape ``(n, 2)``: start and end of each module."""
        layout = self._layout
        ranges = self._ranges_at + index * layout.size("ranges")
        modules = self._memory.u64(ranges + layout.offset("ranges", "modules"))
        count = self._memory.u64(ranges + layout.offset("ranges", "n"))
        if count > _MAX_RANGES:
            raise ReadRefusedError(f"the VM claims {count} ranges of code: none is believed")
        pairs = self._memory.words(modules, 2 * count).reshape(-1, 2) if count else _NO_RANGES
        # A module that was purged leaves an empty range.
        filled: NDArray[np.uint64] = pairs[pairs[:, 0] < pairs[:, 1]]
        return filled

    def _lookup(self, address: int, *, lines: bool) -> Mfa | None:
        index = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if index < 0 or address >= int(self._ends[index]):
            return None
        module = self._module(int(self._starts[index]), int(self._ends[index]))
        index = int(np.searchsorted(module.functions, np.uint64(address), side="right")) - 1
        if not 0 <= index < len(module.functions) - 1:
            return None  # the module's own preamble
        info = int(module.functions[index]) + self._layout.offset("ErtsCodeInfo", "mfa.module")
        mfa = self.mfa(info)
        if mfa is None or not lines:
            return mfa
        try:
            file, line = self._line(module, index, address, mfa.module)
        except UnreadableMemoryError:
            return mfa
        return mfa._replace(file=file, line=line)

    def _module(self, start: int, end: int) -> _Module:
        module = self._modules.get(start)
        if module is None or module.end != end:
            module = self._modules[start] = self._read_module(start, end)
        return module

    def _read_module(self, start: int, end: int) -> _Module:
        layout = self._layout
        first = layout.offset("BeamCodeHeader", "functions")
        header = self._memory.read(start, first + 8)
        count = int.from_bytes(header[:8], "little")
        if not 0 < count < _MAX_FUNCTIONS:
            raise ReadRefusedError(f"the code at {start:#x} claims {count} functions")
        functions = self._memory.words(start + first, count + 1)
        inside = (functions >= start) & (functions <= end)
        if not inside.all() or (functions[1:] < functions[:-1]).any():
            raise ReadRefusedError(f"the functions of the code at {start:#x} are not in order")
        return _Module(start, end, header, functions)

    def _line(
        self, module: _Module, index: int, address: int, name: str
    ) -> tuple[str | None, int | None]:
        """Find file and line of an address within function number *index* of the module *name*."""
        layout = self._layout
        table = int.from_bytes(
            module.header[layout.offset("BeamCodeHeader", "line_table") :][:8], "little"
        )
        if not table:
            return None, None
        functions = table + layout.offset("BeamCodeLineTab", "func_tab")
        low, high = self._memory.words(functions + 8 * index, 2).tolist()
        base = self._memory.u64(functions)
        if not 0 <= high - low < 8 * _MAX_FUNCTIONS or low < base:
            return None, None
        # Each entry holds an address and the next one ends it.
        addresses = self._memory.words(low, (high - low) // 8 + 1)
        entry = int(np.searchsorted(addresses, np.uint64(address), side="right")) - 1
        if not 0 <= entry < len(addresses) - 1:
            return None, None
        size = self._memory.u32(table + layout.offset("BeamCodeLineTab", "loc_size"))
        if size not in (2, 4):
            return None, None
        locations = self._memory.u64(table + layout.offset("BeamCodeLineTab", "loc_tab"))
        raw = self._memory.read(locations + size * ((low - base) // 8 + entry), size)
        location = int.from_bytes(raw, "little")
        if not location:
            return None, None
        names = self._memory.u64(table + layout.offset("BeamCodeLineTab", "fname_ptr"))
        file = self._file(names, location >> _LINE_BITS, name)
        return file, location & ((1 << _LINE_BITS) - 1)

    def _file(self, names: int, number: int, module: str) -> str:
        """Name one of a module's files; *names* is where their names lie."""
        if self._layout.facts.own_file_names:
            return self._text(self._memory.u64(names + 8 * number))
        if number == 0:
            return f"{module}.erl"
        return self._atoms.text(self._memory.u64(names + 8 * (number - 1)))

    def _text(self, term: int) -> str:
        """Read a list of characters, cut at _MAX_NAME."""
        characters: list[str] = []
        while term & PRIMARY_MASK == LIST and len(characters) < _MAX_NAME:
            head, term = self._memory.words(term & POINTER_MASK, 2).tolist()
            if not is_small(head) or not 0 <= small(head) < 0x110000:
                break
            characters.append(chr(small(head)))
        return "".join(characters)


_NO_RANGES = np.empty((0, 2), np.uint64)


def _without_overlaps(ranges: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Drop ranges that overlap: neither of two claims to one address is used."""
    if len(ranges) < 2:
        return ranges
    clash = ranges[1:, 0] < ranges[:-1, 1]
    bad = np.zeros(len(ranges), np.bool_)
    bad[1:] |= clash
    bad[:-1] |= clash
    kept: NDArray[np.uint64] = ranges[~bad]
    return kept
