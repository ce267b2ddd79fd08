# SPDX-License-Identifier: Apache-2.0
"""
ELF files that lie or are cut, and other files.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from beams_run import require
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scope_ebpf.beam.elf.binary import Binary, UnreadableElfError
from scope_ebpf.sandbox.limits import LimitError, MalformedError
from scope_ebpf.sandbox.questions import Questions

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
NOBITS, PROGBITS, SYMTAB, STRTAB, NOTE, DYNSYM = 8, 1, 2, 3, 7, 11


def note(owner: bytes, kind: int, description: bytes) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    return struct.pack("<III", len(owner), len(description), kind) + pad(owner) + pad(description)


def table(symbols: dict[str, tuple[int, int, int]]) -> tuple[bytes, bytes]:
    """
    A symbol table and its names; each symbol has an address, a size and a type.
    """
    names, rows = b"\0", _SYMBOL.pack(0, 0, 0, 0, 0, 0)
    for name, (address, size, kind) in symbols.items():
        rows += _SYMBOL.pack(len(names), 1 << 4 | kind, 0, 1, address, size)
        names += name.encode() + b"\0"
    return rows, names


def elf(sections: dict[str, tuple[int, int, bytes]]) -> bytes:
    """
    A small 64-bit ELF file; each section has a type, an address and its bytes.
    """
    strings, body, heads = b"\0", b"", [_SECTION.pack(*[0] * 10)]
    start = _HEADER.size + _SEGMENT.size
    everything = sections | {".shstrtab": (STRTAB, 0, b"")}
    names = {}
    for name in everything:
        names[name] = len(strings)
        strings += name.encode() + b"\0"
    everything[".shstrtab"] = (STRTAB, 0, strings)
    for name, (kind, address, data) in everything.items():
        offset = start + len(body)
        entry = 24 if kind in (SYMTAB, DYNSYM) else 0
        link = len(heads) + 1 if entry else 0  # the names come next
        heads.append(
            _SECTION.pack(names[name], kind, 2, address, offset, len(data), link, 0, 1, entry)
        )
        body += data
    header = _HEADER.pack(
        b"\x7fELF\x02\x01\x01" + bytes(9), 3, 62, 1, 0x40, _HEADER.size, start + len(body), 0,
        64, 56, 1, 64, len(heads), len(heads) - 1,
    )  # fmt: skip
    segment = _SEGMENT.pack(1, 5, start, 0x1000, 0x1000, len(body), len(body), 0x1000)
    return header + segment + body + b"".join(heads)


def opened(tmp_path: Path, data: bytes) -> Binary:
    path = tmp_path / "file"
    path.write_bytes(data)
    return Binary.open(path)


def stapsdt(address: int, base: int, semaphore: int) -> bytes:
    return struct.pack("<QQQ", address, base, semaphore) + b"erlang\0message__send\x008@%r12\0"


def test_symbols_of_two_tables_are_joined_and_the_first_one_wins(tmp_path: Path):
    """
    .symtab comes before .dynsym, and each name is found in either.
    """
    rows, names = table({"both": (0x1000, 8, 2), "own": (0x1010, 4, 1)})
    dynamic, dynamic_names = table({"both": (0x2000, 8, 2), "exported": (0x1020, 2, 2)})
    binary = opened(
        tmp_path,
        elf(
            {
                ".symtab": (SYMTAB, 0, rows),
                ".strtab": (STRTAB, 0, names),
                ".dynsym": (DYNSYM, 0, dynamic),
                ".dynstr": (STRTAB, 0, dynamic_names),
            }
        ),
    )
    assert ".symtab" == binary.symbol_source
    found = {s.name: (s.address, s.is_function) for s in binary.matching(re.compile(""))}
    assert {"both": (0x1000, True), "own": (0x1010, False), "exported": (0x1020, True)} == found
    assert binary.symbol("exported").address == 0x1020
    assert binary.symbol("missing") is None
    assert "own" == binary.function_at(0x1012).name


def test_symbols_packed_in_the_file_are_found(tmp_path: Path):
    """
    A stripped file may carry its symbols compressed.
    """
    rows, names = table({"hidden": (0x1000, 8, 2)})
    inner = elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)})
    binary = opened(tmp_path, elf({".gnu_debugdata": (PROGBITS, 0, lzma.compress(inner))}))
    assert ".gnu_debugdata" == binary.symbol_source
    assert binary.symbol("hidden").address == 0x1000


@pytest.mark.parametrize("honest", [True, False])
def test_a_debug_file_is_believed_only_if_its_checksum_is_right(tmp_path: Path, honest: bool):
    """
    Symbols of another build would be wrong symbols.
    """
    rows, names = table({"secret": (0x1000, 8, 2)})
    debug = elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)})
    (tmp_path / ".debug").mkdir()
    (tmp_path / ".debug/file.debug").write_bytes(debug)
    crc = zlib.crc32(debug) + (not honest) & 0xFFFFFFFF
    link = b"file.debug\0\0" + struct.pack("<I", crc)
    binary = opened(tmp_path, elf({".gnu_debuglink": (PROGBITS, 0, link)}))
    assert honest == (binary.symbol("secret") is not None)


def test_a_usdt_site_moves_as_its_base_moved(tmp_path: Path):
    """
    A prelinked file's notes hold the addresses from before.
    """
    binary = opened(
        tmp_path,
        elf(
            {
                ".stapsdt.base": (PROGBITS, 0x5100, b"\0"),
                ".note.stapsdt": (NOTE, 0, note(b"stapsdt\0", 3, stapsdt(0x1010, 0x5000, 0x6000))),
            }
        ),
    )
    (site,) = binary.usdt_sites
    assert ("erlang", "message__send", "8@%r12") == (site.provider, site.name, site.arguments)
    assert (0x1110, 0x6100) == (site.address, site.semaphore)


def test_an_address_outside_the_file_is_an_error(tmp_path: Path):
    """
    There is no offset for an address that is not in the file.
    """
    binary = opened(tmp_path, elf({".text": (PROGBITS, 0x1000, b"code")}))
    assert b"code" == binary.read(0x1000, 4)
    with pytest.raises(UnreadableElfError, match="0x9999"):
        binary.file_offset(0x9999)


@pytest.mark.parametrize("address", [-1, 0xFFF, 0x1008, 1 << 63, 1 << 64])
def test_an_address_without_a_symbol_has_none(tmp_path: Path, address: int):
    """
    What a hostile call leads to, before the first address or beyond the last one, has no function.
    """
    rows, names = table({"only": (0x1000, 8, 2)})
    sections = {".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)}
    assert opened(tmp_path, elf(sections)).function_at(address) is None


@pytest.mark.parametrize(
    "data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01\x01" + bytes(60)]
)
def test_what_is_no_elf_file_is_refused(tmp_path: Path, data: bytes):
    """
    A script, a stub and a 32-bit file are no VM.
    """
    with pytest.raises(UnreadableElfError):
        opened(tmp_path, data)


def exercise(data: bytes, folder: Path) -> None:
    """
    Every question about *data*, in this process: there is no confined one that hides an error.
    """
    (folder / "file").write_bytes(data)
    with (folder / "file").open("rb") as file:
        questions = Questions("file", file.fileno())
        for question in (
            questions.on_facts,
            lambda: questions.on_symbols(["erts_schedule"]),
            lambda: questions.on_matching(["erts"]),
            lambda: questions.on_at([0x1001]),
            questions.on_sites,
            lambda: questions.on_read(0x1000, 16),
            lambda: questions.on_calls(0x1000, 16),
        ):
            with contextlib.suppress(LimitError, MalformedError):
                json.dumps(question())


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=30),
    st.integers(0, 4000),
)
def test_a_damaged_file_is_refused_or_read_but_never_hangs(
    tmp_path: Path, damage: list[tuple[int, int]], cut: int
):
    """
    Any bytes changed, any length cut: a clear refusal, or what is left of the truth.
    """
    rows, names = table({f"erts_{n}": (0x1000 + n, 1, 2) for n in range(20)})
    inner = lzma.compress(elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)}))
    data = bytearray(
        elf(
            {
                ".dynsym": (DYNSYM, 0, rows),
                ".dynstr": (STRTAB, 0, names),
                ".note.gnu.build-id": (NOTE, 0, note(b"GNU\0", 3, b"0123")),
                ".note.stapsdt": (NOTE, 0, note(b"stapsdt\0", 3, stapsdt(1, 2, 3))),
                ".gnu_debugdata": (PROGBITS, 0, inner),
            }
        )
    )
    for offset, value in damage:
        data[offset % len(data)] = value
    exercise(bytes(data[: len(data) - cut if cut < len(data) // 2 else len(data)]), tmp_path)


def test_forty_symbols_of_a_large_file_are_found_in_one_pass(tmp_path: Path):
    """
    40,000 symbols are there, 40 are wanted: each is looked at once, and not once for each name.
    """
    rows, names = table({f"symbol_number_{n}": (n, 1, 2) for n in range(40000)})
    (tmp_path / "file").write_bytes(
        elf({".symtab": (SYMTAB, 0, rows), ".strtab": (STRTAB, 0, names)})
    )
    wanted = [f"symbol_number_{n * 999}" for n in range(40)]
    calls: Counter[str] = Counter()
    with (tmp_path / "file").open("rb") as file:
        questions = Questions("file", file.fileno())
        sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
        try:
            found = questions.on_symbols(wanted)
        finally:
            sys.setprofile(None)
    assert [n * 999 for n in range(40)] == [found[name][1] for name in wanted]
    assert calls["c_call"] < 5 * 40_000, calls


CALLER = """
extern void outside(char *);
static __attribute__((noinline)) void inside(char *text) { __asm__ volatile("" : : "r"(text)); }
void caller(void) { char text[64]; outside(text); inside(text); }
"""


def test_stubs_of_other_files_functions_are_known(tmp_path: Path):
    """
    Of a stripped file the one callee without a symbol is its own, not the stack protector's stub.
    """
    require(shutil.which("gcc"), "gcc is not installed")
    source, path = tmp_path / "caller.c", tmp_path / "caller.so"
    source.write_text(CALLER)
    flags = ("-O1", "-fPIC", "-shared", "-fstack-protector-all", "-fcf-protection=branch")
    subprocess.run(["gcc", *flags, "-Wl,-z,lazy", "-o", path, source], check=True)
    whole = Binary.open(path)
    inside = whole.symbol("inside")
    whole.close()
    assert inside
    subprocess.run(["strip", path], check=True)
    binary = Binary.open(path)
    caller = binary.symbol("caller")
    assert caller
    assert binary.symbol("inside") is None
    calls = binary.calls(caller.address, caller.size)
    binary.close()
    assert 3 == len(calls)  # outside, inside, __stack_chk_fail
    assert [inside.address] == [target for _, target, known in calls if not known]
