# SPDX-License-Identifier: Apache-2.0
"""Questions about a file, and their answers as plain data. Runs confined."""

from __future__ import annotations

import re
import struct
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scope_ebpf.sandbox import code, jit_code, limits
from scope_ebpf.sandbox.elf import Elf, File, Unpacked
from scope_ebpf.sandbox.limits import LimitError, MalformedError
from scope_ebpf.sandbox.starts import TEXT, Starts
from scope_ebpf.sandbox.symbols import Symbol, Table

if TYPE_CHECKING:
    from scope_ebpf.sandbox.elf import Source
    from scope_ebpf.sandbox.frames import CallFrames, Row
    from scope_ebpf.sandbox.marks import Marks
    from scope_ebpf.sandbox.matching import Found

_BLOCK = 1 << 20
_ADDRESSES = struct.Struct("<QQQ")
_WORD = (1 << 64) - 1
_MANGLED = re.compile(r"_Z([0-9]{1,3})(?=[A-Za-z_])")
#: Sections of an emulator's variables (``beam.memory.search``).
_VARIABLES = (".bss", ".data", "ERTS_LOW_WRITE")
#: Through which a file calls functions of others, such as the stack protector's. They have no
#: symbols of their own where a file is stripped.
_STUBS = (".plt", ".plt.sec", ".plt.got")


class Questions:
    """Answers about the file *fd*; *name* is for messages."""

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        self._file: Source = File(fd)
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

    def on_callers(self, functions: list[int]) -> list[list[int]]:
        """For each function where code calls it, or jumps to it, by direct branches."""
        found = code.callers(
            self._elf.section(TEXT) or b"", self._elf.address(TEXT) or 0, functions
        )
        return [found[function][: limits.FOUND] for function in functions]

    def on_references(self, address: int, size: int) -> list[int]:
        """The addresses that a function names: relative to its own code, and of variables."""
        found = code.references(self._body(address, size), address, self._variables)
        found = found[: limits.INSTRUCTIONS]
        return [address & _WORD for address in found]

    @cached_property
    def _variables(self) -> list[range]:
        """Where variables lie in a file that is loaded at its own addresses."""
        if self._elf.relative:
            return []
        found = (self._elf.sections.get(name) for name in _VARIABLES)
        return [range(s.address, s.address + s.size) for s in found if s]

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

    @cached_property
    def _starts(self) -> Starts:
        return Starts(self._elf)

    def on_starts(self, functions: list[tuple[int, int]]) -> list[bool]:
        """Whether the frame descriptions have a function of that start and size, for each."""
        return [self._starts.sizes.get(start) == size for start, size in functions]

    @cached_property
    def _marks(self) -> Marks:
        from scope_ebpf.sandbox.marks import Marks

        return Marks(self._elf)

    def on_digest(self) -> str:
        """
        The file's SHA-256, in hex. Nothing of it is parsed, so no file decides the answer.

        A user who may write the file may change it afterwards: later answers are of the same bytes.
        """
        from hashlib import sha256

        if self._file.size > limits.PROGRAM:
            raise LimitError(f"it has {self._file.size:,} bytes, at most {limits.PROGRAM:,} count")
        data = bytearray()
        for offset in range(0, self._file.size, _BLOCK):
            data += self._file.at(offset, min(_BLOCK, self._file.size - offset))
        self._file = Unpacked(data)
        for parsed in ("_elf", "_tables", "_frames", "_starts", "_marks"):
            self.__dict__.pop(parsed, None)
        return sha256(data).hexdigest()

    def _require(self, digest: str) -> None:
        """Refuse other bytes than those of *digest*; answer from these."""
        if self.on_digest() != digest:
            raise MalformedError("it changed while it was read")

    def on_learn(self, wanted: list[str]) -> dict[str, object]:
        """What this build teaches of functions: see ``learning``; a compiler, and their names."""
        from scope_ebpf.sandbox.learning import learn

        functions = self._functions()
        names = {start: name for name, start in functions.items()}
        found = _wanted(functions, wanted)
        comments = (self._elf.section(".comment") or b"").split(b"\0")
        # The C library's own parts are of GCC in every build.
        others = [text for text in comments if text and not text.startswith(b"GCC:")]
        comment = (others or comments)[0][: limits.CALLED]
        learned = learn(self._marks, names, found)
        return {**learned, "compiler": comment.decode("ascii", "replace"), "wanted": list(found)}

    def on_match(
        self,
        digest: str,
        wanted: list[str],
        rows: list[Any],
        called: list[str],
        unique: list[int],
    ) -> dict[str, Found]:
        """The functions *wanted* of a reference in the file of *digest*: see ``matching``."""
        from scope_ebpf.sandbox.matching import Matcher, Reference

        self._require(digest)
        return Matcher(self._marks, self._functions(), Reference(rows, called, unique)).run(wanted)

    def on_wanted(self, digest: str, wanted: list[str]) -> dict[str, tuple[int, int]]:
        """Start and size of the functions of those names, mangled ones too, in that file."""
        self._require(digest)
        starts = _wanted(self._functions(), wanted)
        sizes = self._starts.sizes
        return {name: (start, sizes[start]) for name, start in starts.items() if start in sizes}

    def _functions(self) -> dict[str, int]:
        """The start of every named function."""
        found: dict[str, int] = {}
        for table in self._tables:
            for name, address in table.functions():
                found.setdefault(name, address)
        return found

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


def _wanted(functions: dict[str, int], wanted: list[str]) -> dict[str, int]:
    """The start of each wanted function; names of C++ are mangled: _Z, a length, the name."""
    plain: dict[str, int] = {}
    for name, start in functions.items():
        match = _MANGLED.match(name)
        own = name[match.end() : match.end() + int(match[1])] if match else name
        if own in wanted:
            plain.setdefault(own, start)
    return plain


def _crc(file: Source) -> int:
    crc = 0
    for offset in range(0, file.size, _BLOCK):
        crc = zlib.crc32(file.at(offset, _BLOCK), crc)
    return crc
