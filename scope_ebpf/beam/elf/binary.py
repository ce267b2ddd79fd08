# SPDX-License-Identifier: Apache-2.0
"""
What one executable contains: symbols, USDT sites, build id, bytes.

Symbols come from ``.symtab``, then a debug file (build id or ``.gnu_debuglink``), then
``.gnu_debugdata``, then ``.dynsym``; the first table that knows a name wins. The file is another
user's: a confined process parses it (``sandbox.client``), and what it answers is checked.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_ebpf.beam.elf import checked, debug_files
from scope_ebpf.beam.elf.contents import Segment, Symbol, UnreadableElfError, UsdtSite
from scope_ebpf.sandbox import answers, files, limits
from scope_ebpf.sandbox.client import Parser, UnreadableFileError
from scope_ebpf.sandbox.refusals import Key, Refusals, key_of

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeVar

    from scope_ebpf.beam.elf.entry import Entry

    T = TypeVar("T")

__all__ = ["Binary", "Symbol", "UnreadableElfError", "UsdtSite"]

#: CPU seconds that parsing a file may take: in the daemon, and in a command.
_LOOK, _PATIENT_LOOK = 0.7, 5.0
#: Bytes of a section whose addresses are used: an emulator's variables have 1 MB.
_MAX_SECTION = 64 << 20
#: Readings that stay cached, and bytes of one: the next VM of this program needs the same.
_MAX_CACHED, _SMALL = 64, 1024
#: Names that most inspections of an emulator need, so all are asked for at once: the child
#: goes through the whole table for each question. Those of hooks come with :func:`foresee`.
_usual = {
    *("etp_otp_release", "etp_erts_version", "etp_beamasm", "erts_invalid_process"),
    *("erts_proc", "erts_port", "erts_atom_table", "erts_this_node", "erts_schedule"),
    *("r", "the_active_code_index", "beam_normal_exit", "erts_frame_layout"),
    *("erts_no_schedulers", "erts_no_dirty_cpu_schedulers", "erts_no_dirty_io_schedulers"),
    *("erts_aligned_scheduler_data", "erts_aligned_dirty_cpu_scheduler_data"),
    *("erts_aligned_dirty_io_scheduler_data", "dirty_gc.info", "erts_init_gc"),
    *("ethr_mutex_init", "erts_allctrs_info", "erts_allctr_thr_spec"),
    *("erts_total_code_size", "erts_ets_misc_mem_size"),
    *("erts_halt_progress", "erts_halt_code"),
    *("enif_get_atom", "enif_is_process_alive", "enif_is_port_alive"),
    "erts_dsig_send",
}
#: The functions of hooks, and patterns of mangled ones: of them, too, all are asked for at once.
_functions: tuple[str, ...] = ()
_mangled: tuple[str, ...] = ()


def foresee(functions: Iterable[str], called: Iterable[str], mangled: Iterable[str]) -> None:
    """
    Ask for all of these when one is asked for: from now on they will be.

    They are *functions* that get hooks, what is *called* in them, and patterns of *mangled* names.
    """
    global _functions, _mangled  # set once, by the planner
    _functions, _mangled = tuple(dict.fromkeys(functions)), tuple(dict.fromkeys(mangled))
    _usual.update(_functions, called)


class _Answers:
    """What the child has answered until now."""

    def __init__(self) -> None:
        self.names: dict[str, Symbol | None] = {}
        self.matches: dict[str, list[Symbol]] = {}
        self.entries: dict[tuple[int, int], Entry | None] = {}
        #: What was asked of functions, by start and size.
        self.starts: dict[tuple[int, int], bool] = {}
        self.references: dict[tuple[int, int], list[int]] = {}
        self.calls: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
        #: The first bytes at some addresses, and other bytes by address and size.
        self.heads: dict[int, bytes] = {}
        self.cached: dict[tuple[int, int], bytes] = {}


class Binary:
    """
    An executable or shared object, open for reading; *path* is one that leads to it now.

    *fd* becomes the binary's. Once the file was refused, all of it is: each further question
    raises the same RefusedFileError.
    """

    def __init__(
        self,
        path: Path,
        fd: int,
        *,
        debug_files: bool = True,
        refusals: Refusals | None = None,
    ) -> None:
        self.path = path
        self._fd = fd
        status = os.fstat(fd)
        #: Device and inode.
        self.inode = status.st_dev, status.st_ino
        #: Key under which a refusal of the file is remembered.
        self.key: Key = key_of(status)
        self._debug_files = debug_files
        self._refusals = refusals or Refusals()
        seconds = _PATIENT_LOOK if debug_files else _LOOK
        self._parser = Parser(fd, str(path), seconds, partial(self._refusals.add, self.key))
        self._closing = weakref.finalize(self, _let_go, self._parser, fd)
        self._answers = _Answers()
        self._sought = False
        #: Functions that the file hides, by name, once they were looked for (``beam.hidden``).
        self._hidden: dict[str, Symbol] = {}
        try:
            self._refusals.check(self.key)
            self._facts = self._ask("facts", checked.facts)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls, path: Path, *, debug_files: bool = True, refusals: Refusals | None = None
    ) -> Binary:
        """
        Open *path*, which may be ``/proc/PID/exe``.

        Without *debug_files* no other file is opened for its symbols. What is known to
        *refusals* is refused at once. Raises OSError as the kernel says it, RefusedFileError
        for what is no file or exceeds a limit, and UnreadableElfError (a
        NotABeamError) for anything that is no whole 64-bit ELF file.
        """
        fd = files.open_magic(path)
        return cls(path, fd, debug_files=debug_files, refusals=refusals)

    @classmethod
    def below_root(cls, pid: int, path: str) -> Binary:
        """Open *path* as process *pid* sees it, which may have chosen it; as :meth:`open`."""
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            process = f"/proc/{pid}"
            fd = files.open_regular(root, path, most=files.MAX_PROGRAM, process=process)
        finally:
            os.close(root)
        return cls(Path(path), fd, debug_files=False)

    @classmethod
    def of_image(cls, name: str, image: bytes) -> Binary:
        """Take an ELF file that is in memory, such as the kernel's vdso."""
        fd = os.memfd_create("image", os.MFD_CLOEXEC)
        with open(fd, "wb", closefd=False) as file:
            file.write(image)
        return cls(Path(name), fd, debug_files=False)

    def fileno(self) -> int:
        """The descriptor of the file that was parsed, open as long as this is."""
        return self._fd

    @property
    def build_id(self) -> str | None:
        """The linker's fingerprint in hex, or None."""
        return self._facts.build_id

    @property
    def machine(self) -> str:
        """The processor: ``x64``, ``AArch64``."""
        return self._facts.machine

    @property
    def relative(self) -> bool:
        """Whether the file is loaded at an address of the kernel's choice (PIE)."""
        return self._facts.relative

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that the kernel loads."""
        return self._facts.segments

    @property
    def entry(self) -> int:
        """The entry point, as an address of the file."""
        return self._facts.entry

    @cached_property
    def symbol_source(self) -> str:
        """Where names are looked up first; "" for a file without any symbol."""
        return self._ask_symbols("source", answers.text)

    def symbol(self, name: str) -> Symbol | None:
        """Find the symbol called *name*, one of :meth:`reveal` as well, or None."""
        return self._own_symbol(name) or self._hidden.get(name)

    def reveal(self, symbols: Iterable[Symbol]) -> None:
        """Know *symbols* of functions that the file hides from now on, and no others."""
        self._hidden = {symbol.name: symbol for symbol in symbols}

    def is_start(self, address: int, size: int) -> bool:
        """Whether call frame information describes a function of *size* bytes at *address*."""
        return self.are_starts([(address, size)])[0]

    def are_starts(self, functions: Sequence[tuple[int, int]]) -> list[bool]:
        """The same for each of several *functions*, of which start and size are given."""
        wanted = [one for one in dict.fromkeys(functions) if one not in self._answers.starts]
        if wanted:
            found = self._ask(
                "starts", lambda a: answers.as_many(a, answers.flag, len(wanted)), wanted
            )
            self._answers.starts |= zip(wanted, found, strict=True)
        return [self._answers.starts[one] for one in functions]

    @property
    def patient(self) -> bool:
        """Whether looking into the file may take seconds: in a command, not in the daemon."""
        return self._debug_files

    def apart(self, seconds: float, patience: float | None = None) -> Parser:
        """
        Return a parser that looks for functions, which nothing of the file has reached yet.

        *seconds* of CPU time and *patience* as of :class:`Parser`; it is the caller's to close.
        What is refused to it is not refused to this.
        """
        return Parser(self._fd, str(self.path), seconds, patience=patience, kind=limits.DIGESTS)

    def _own_symbol(self, name: str) -> Symbol | None:
        if name not in self._answers.names:
            wanted = [name, *(_usual - self._answers.names.keys() - {name})]
            found = self._ask_symbols(
                "symbols", lambda a: answers.table(a, checked.symbol, len(wanted)), wanted
            )
            self._answers.names |= {one: found.get(one) for one in wanted}
        return self._answers.names[name]

    def matching(self, pattern: re.Pattern[str]) -> list[Symbol]:
        """Every symbol whose name matches *pattern* from its start, sorted by name."""
        text = pattern.pattern
        if text not in self._answers.matches:
            wanted = [text]
            if text in _mangled:
                wanted += [
                    one for one in _mangled if one != text and one not in self._answers.matches
                ]
            found = self._ask_symbols("matching", lambda a: checked.matches(a, len(wanted)), wanted)
            self._answers.matches |= zip(wanted, found, strict=True)
        return list(self._answers.matches[text])

    def function_at(self, address: int) -> Symbol | None:
        """Find the symbol that spans an address of the file, or None."""
        if not 0 <= address < answers.ADDRESS:
            return None
        (found,) = self._ask_symbols("at", checked.symbols_or_none, [address])
        return found

    @cached_property
    def usdt_sites(self) -> tuple[UsdtSite, ...]:
        """Every USDT site of every provider, in the order of the notes."""
        sites = self._ask("sites", lambda a: answers.many(a, answers.site, limits.ALL_SITES))
        heads_at = [site[2] for site in sites if site[0] == "erlang"]
        # Each site's first bytes will be read, so all are read at once.
        heads: list[bytes | None] = []
        if heads_at:
            heads = self._ask("heads", lambda a: checked.heads(a, len(heads_at)), heads_at)
        self._answers.heads |= {p: head for p, head in zip(heads_at, heads, strict=True) if head}
        return tuple(UsdtSite(*site) for site in sites)

    def file_offset(self, address: int) -> int:
        """Where the byte at *address* lies in the file; UnreadableElfError if it does not."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.file_size:
                return address - segment.address + segment.offset
        raise UnreadableElfError(f"address {address:#x} is not in the file {self.path}")

    def read(self, address: int, size: int) -> bytes:
        """*size* bytes of the file at *address*, as the linker put them there."""
        self.file_offset(address)
        if (address, size) in self._answers.cached:
            return self._answers.cached[address, size]
        if 0 < size <= len(self._answers.heads.get(address, b"")):
            return self._answers.heads[address][:size]

        def whole(found: Any) -> bytes:
            data = answers.content(found)
            if len(data) != size:
                raise ValueError("another size")
            return data

        found = self._ask("read", whole, address, size)
        if size <= _SMALL and len(self._answers.cached) < _MAX_CACHED:
            self._answers.cached[address, size] = found
        return found

    def find(self, section: str, text: bytes) -> list[int]:
        """Every occurrence of *text* in a section, as addresses of the file."""
        most = limits.FOUND
        return self._ask(
            "find",
            lambda a: answers.many(a, answers.integer, most),
            section,
            text.decode("latin-1"),
        )

    def search(
        self, sections: Sequence[str], start: bytes, pattern: re.Pattern[bytes]
    ) -> re.Match[bytes] | None:
        """Find the first text in *sections* that begins with *start* and matches *pattern*."""
        found = self._ask(
            "search",
            answers.optional(lambda a: answers.content(a, limits.AROUND)),
            sections,
            start.decode("latin-1"),
            pattern.pattern.decode("latin-1"),
        )
        return pattern.fullmatch(found) if found else None

    def section_address(self, name: str) -> tuple[int, int] | None:
        """
        (address, size) of a section, also of one without contents such as ``.bss``.

        None for a section that is larger than those of an emulator.
        """
        section = self._facts.sections.get(name)
        return section if section and section[1] <= _MAX_SECTION else None

    def cheap_entry(self, address: int, size: int) -> Entry:
        """
        The cheapest breakpoint for calls of the function of *size* bytes at *address*.

        UnreadableElfError for one that is not in the file.
        """
        if (address, size) not in self._answers.entries:
            usual = {
                (s.address, s.size) for name in _functions if (s := self._answers.names.get(name))
            }
            wanted = [(address, size), *(usual - self._answers.entries.keys() - {(address, size)})]
            found = self._ask("entries", lambda a: checked.entries(a, len(wanted)), wanted)
            self._answers.entries |= zip(wanted, found, strict=True)
        entry = self._answers.entries[address, size]
        if entry is None:
            raise UnreadableElfError(f"address {address:#x} is not in the file {self.path}")
        return entry

    def calls(self, address: int, size: int) -> list[tuple[int, int, bool]]:
        """
        Where the function at *address* calls which address, and whether that one is known.

        Known is what a symbol spans, and the PLT. UnreadableElfError for a function that is not
        in the file.
        """
        if (address, size) not in self._answers.calls:
            found = self._ask_symbols("calls", checked.calls, address, size)
            self._answers.calls[address, size] = found
        return list(self._answers.calls[address, size])

    def callers(self, functions: Sequence[int]) -> list[list[int]]:
        """For each of *functions*, by its address, where direct branches lead to it (x86-64)."""
        return self._ask(
            "callers",
            lambda a: answers.as_many(
                a, lambda one: answers.many(one, answers.integer, limits.FOUND), len(functions)
            ),
            list(functions),
        )

    def references(self, address: int, size: int) -> list[int]:
        """The addresses that the code of the function at *address* names (x86-64)."""
        if (address, size) not in self._answers.references:
            self._answers.references[address, size] = self._ask(
                "references",
                lambda a: answers.many(a, answers.integer, limits.INSTRUCTIONS),
                address,
                size,
            )
        return list(self._answers.references[address, size])

    def frames(self, address: int) -> tuple[int, int, list[tuple[Any, ...]]] | None:
        """
        (start, end, rows) of the frame description of the function around *address*.

        Each row is where it begins and its rule (base, offset, saved, outermost) or None.
        """
        return self._ask("frames", answers.optional(answers.function), address)

    def close(self) -> None:
        """Close the file, and end its parser; happens with the last reference, too."""
        self._closing()

    def _ask(self, question: str, check: Callable[[Any], T], *arguments: object) -> T:
        try:
            return self._parser.ask(question, check, *arguments)
        except UnreadableFileError as error:
            raise UnreadableElfError(str(error)) from None

    def _ask_symbols(self, question: str, check: Callable[[Any], T], *arguments: object) -> T:
        """Ask what other files may add to: those are looked for first, once."""
        if not self._sought:
            if self._debug_files and not self._facts.own:
                debug_files.add_first(self._parser, self.path, self._facts)
            self._sought = True
        return self._ask(question, check, *arguments)


def _let_go(parser: Parser, fd: int) -> None:
    parser.close()
    with contextlib.suppress(OSError):  # its filesystem may have gone; the descriptor has, too
        os.close(fd)
