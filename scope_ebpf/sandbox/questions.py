# SPDX-License-Identifier: Apache-2.0
"""Questions about a file, and their answers as plain data. Runs confined."""

from __future__ import annotations

import re
import struct
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scope_ebpf.sandbox import code, jit_code, limits
from scope_ebpf.sandbox.elf import Elf, File
from scope_ebpf.sandbox.limits import LimitError, MalformedError
from scope_ebpf.sandbox.symbols import Symbol, Table

if TYPE_CHECKING:
    from scope_ebpf.sandbox.frames import CallFrames, Row

_BLOCK = 1 << 20
_ADDRESSES = struct.Struct("<QQQ")
_WORD = (1 << 64) - 1
#: Through which a file calls functions of others, such as the stack protector's. They have no
#: symbols of their own where a file is stripped.
_STUBS = (".plt", ".plt.sec", ".plt.got")


class Questions:
    """Answers about the file *fd*; *name* is for messages."""

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        self._file = File(fd)
        self._added: list[Table] = []

    def ask(self, question: str, arguments: list[Any], fds: list[int]) -> object:
        """Answer one question; descriptors are of files that it speaks of."""
        answer = getattr(self, f"on_{question}")
        return answer(*arguments, *fds)

    @cached_property
    def _elf(self) -> Elf:
        return Elf(self._file)

    def on_facts(self) -> dict[str, object]:
        """Basic facts of the file, and of the debug file that it names."""
        elf = self._elf
        own = elf.sections.get(".symtab")
        link = elf.section(".gnu_debuglink") or b"" if own is None else b""
        name, _, rest = link[: limits.NAME].partition(b"\0")
        crc = struct.unpack("<I", link[-4:])[0] if name and len(rest) >= 4 else 0
        sections = {text: (found.address, found.size) for text, found in elf.sections.items()}
        return {
            "machine": elf.machine,
            "entry": elf.entry,
            "relative": elf.relative,
            "build_id": elf.build_id(),
            "segments": elf.segments,
            "sections": sections,
            "own": own is not None,
            "link": [name.decode("utf-8", "replace"), crc],
        }

    @cached_property
    def _tables(self) -> list[Table]:
        """The symbol tables there are, the most complete first."""
        own = Table.of(self._elf, ".symtab")
        # With a .symtab there is nothing that another file could add.
        more = [] if own else [*self._added, self._packed()]
        found = (own, *more, Table.of(self._elf, ".dynsym"))
        return [table for table in found if table is not None]

    def _packed(self) -> Table | None:
        try:
            embedded = self._elf.embedded()
            return Table.of(embedded, ".symtab", ".gnu_debugdata") if embedded else None
        except MalformedError:
            return None  # a broken extra must not hide the symbols that are there

    def on_debug(self, crc: int | None, build_id: str | None, fd: int) -> bool:
        """Take the symbols of another file, if it is of this build; before any is asked for."""
        file = File(fd)
        elf = Elf(file)
        same = elf.build_id() == build_id if crc is None else _crc(file) == crc
        table = Table.of(elf, ".symtab", ".gnu_debuglink") if same else None
        if table is not None:
            self._added.append(table)
        return table is not None

    def on_source(self) -> str:
        """Where names are looked up first."""
        return next((table.source for table in self._tables if table.any()), "")

    def on_symbols(self, names: list[str]) -> dict[str, Symbol]:
        """Symbols by name, from the first table that has the name."""
        found: dict[str, Symbol] = {}
        for table in self._tables:
            found |= table.find([name for name in names if name not in found])
        return found

    def on_matching(self, patterns: list[str]) -> list[list[Symbol]]:
        """For each pattern the symbols whose names match from their start, by name."""
        compiled = [re.compile(pattern) for pattern in patterns]
        found: list[dict[str, Symbol]] = [{} for _ in patterns]
        for table in self._tables:
            for number, symbol in table.matching(compiled):
                found[number].setdefault(symbol[0], symbol)
            if sum(map(len, found)) > limits.MATCHES:
                raise LimitError(f"more than {limits.MATCHES:,} of its symbols match")
        return [[symbols[name] for name in sorted(symbols)] for symbols in found]

    def on_at(self, addresses: list[int]) -> list[Symbol | None]:
        """For each address the symbol that spans it."""
        return [self._at(address) for address in addresses]

    def _at(self, address: int) -> Symbol | None:
        found = (table.at(address) for table in self._tables)
        return next((symbol for symbol in found if symbol), None)

    def on_sites(self) -> list[tuple[str, str, int, int, str]]:
        """Every USDT site: provider, name, address, semaphore (0: none), arguments."""
        base = self._elf.address(".stapsdt.base")
        found = []
        erlang = 0
        for owner, kind, note in self._elf.notes(".note.stapsdt"):
            if owner == b"stapsdt" and kind == 3:
                found.append(_site(note, base))
                erlang += found[-1][0] == "erlang"
                if erlang > limits.SITES or len(found) > limits.ALL_SITES:
                    raise LimitError(f"it has more than {limits.SITES:,} USDT sites")
        return found

    def on_read(self, address: int, size: int) -> str:
        """Bytes of the file by their address, in hex."""
        if size > limits.CONTENT:
            raise LimitError(f"{size:,} bytes at once, at most {limits.CONTENT:,} are read")
        return self._elf.read(address, size).hex()

    def on_heads(self, addresses: list[int]) -> list[str | None]:
        """The first bytes at each address, in hex; None for one that is not in the file."""
        return [self._head(address) for address in addresses]

    def _head(self, address: int) -> str | None:
        try:
            return self._elf.read(address, limits.HEAD).hex()
        except MalformedError:
            return None

    def on_find(self, section: str, text: str) -> list[int]:
        """Where *text* (as Latin-1) lies in a section, by address."""
        data, start = self._elf.section(section) or b"", self._elf.address(section) or 0
        wanted, found = text.encode("latin-1"), []
        at = data.find(wanted)
        while at >= 0:
            found.append(start + at)
            if len(found) > limits.FOUND:
                raise LimitError(f"{text!r} is in {section} more than {limits.FOUND:,} times")
            at = data.find(wanted, at + 1)
        return found

    def on_search(self, sections: list[str], start: str, pattern: str) -> str | None:
        """The first bytes of some sections that begin with *start* and match, in hex."""
        compiled, wanted = re.compile(pattern.encode("latin-1")), start.encode("latin-1")
        for name in sections:
            data = self._elf.section(name) or b""
            at = -1
            for _ in range(limits.TRIED):
                at = data.find(wanted, at + 1)
                if at < 0:
                    break
                found = compiled.match(data, at, at + limits.AROUND)
                if found:
                    return found[0].hex()
        return None

    def on_entries(self, functions: list[tuple[int, int]]) -> list[code.Entry | None]:
        """The cheapest breakpoint for calls of each function; None for one that is not there."""
        return [self._entry(*function) for function in functions]

    def _entry(self, address: int, size: int) -> code.Entry | None:
        try:
            body = self._elf.read(address, size) if size <= limits.CODE else b""
        except MalformedError:
            return None
        return code.cheap_entry(body) if body else code.START

    def on_calls(self, address: int, size: int) -> list[tuple[int, int, bool]]:
        """Where a function calls which address, and whether that is a symbol's or the PLT's."""
        found = code.calls(self._body(address, size), address)[: limits.INSTRUCTIONS]
        return [
            (address, target & _WORD, self._is_known(target & _WORD)) for address, target in found
        ]

    def _is_known(self, address: int) -> bool:
        """Whether a symbol spans *address*, or the linker's stubs for functions of other files."""
        stubs = (self._elf.sections.get(name) for name in _STUBS)
        if any(stub and 0 <= address - stub.address < stub.size for stub in stubs):
            return True
        return self._at(address) is not None

    def on_references(self, address: int, size: int) -> list[int]:
        """The addresses that a function names relative to its own code."""
        found = code.references(self._body(address, size), address)[: limits.INSTRUCTIONS]
        return [address & _WORD for address in found]

    def _body(self, address: int, size: int) -> bytes:
        if size > limits.CODE:
            raise MalformedError(f"a function of {size:,} bytes is not disassembled")
        return self._elf.read(address, size)

    @cached_property
    def _frames(self) -> CallFrames:
        from scope_ebpf.sandbox.frames import CallFrames  # most need none

        return CallFrames(self._elf)

    def on_frames(self, address: int) -> tuple[int, int, list[Row]] | None:
        """(start, end, rows) of the function around *address*, if the file describes it."""
        try:
            return self._frames.function(address)
        except (LimitError, MemoryError, RecursionError):
            raise
        except Exception:  # noqa: BLE001 - pyelftools raises anything for a hostile description
            return None

    def on_leave(self, found: str) -> bool:
        """Whether the code behind a call takes the stack pointer from ``rbp``."""
        return jit_code.leave(bytes.fromhex(found))

    def on_resumes(self, found: str, start: int, address: int, schedule: int, field: int) -> bool:
        """Whether code of the JIT schedules a process that knows already where it goes on."""
        return jit_code.resumes(bytes.fromhex(found), start, address, schedule, field)

    def on_sizes(self, found: str, start: int, address: int) -> list[int]:
        """How far above the stack pointer a return address may lie in the code of the JIT."""
        return jit_code.sizes(bytes.fromhex(found), start, address)


def _site(note: bytes, base: int | None) -> tuple[str, str, int, int, str]:
    """Three addresses and three strings; moved by as much as .stapsdt.base was."""
    if len(note) < _ADDRESSES.size:
        raise MalformedError("a USDT note is shorter than its three addresses")
    address, linked_base, semaphore = _ADDRESSES.unpack_from(note)
    moved = base - linked_base if base is not None else 0
    parts = note[_ADDRESSES.size : _ADDRESSES.size + 4 * limits.NOTE_TEXT].split(b"\0", 3)[:3]
    texts = [text[: limits.NOTE_TEXT].decode("ascii", "replace") for text in parts]
    provider, name, arguments = (*texts, "", "", "")[:3]
    semaphore = semaphore + moved & _WORD if semaphore else 0
    return provider, name, address + moved & _WORD, semaphore, arguments


def _crc(file: File) -> int:
    crc = 0
    for offset in range(0, file.size, _BLOCK):
        crc = zlib.crc32(file.at(offset, _BLOCK), crc)
    return crc
