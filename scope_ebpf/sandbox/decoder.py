# SPDX-License-Identifier: Apache-2.0
"""
Instructions of x86-64 as text, by the library capstone. Runs confined.

capstone's own Python package covers all processors and takes ten times as long to load. So the
library is called directly, in the two versions whose ``cs_insn`` is known; the package is for any
other version. :func:`load` finds the library, before a process is confined.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: include/capstone/capstone.h: CS_ARCH_X86, CS_MODE_64, CS_OPT_DETAIL, CS_OPT_ON.
_X86, _MODE_64, _DETAIL, _ON = 3, 8, 2, 3
#: Registers in one list of cs_regs_access.
_REGISTERS = 64
#: How many bytes ``cs_insn`` has room for, by the library's major version.
_ROOM = {4: 16, 5: 24}
#: The library's path in the package, and its names in distributions.
_OF_PACKAGE = "capstone/lib/libcapstone.so"
_NAMES = ("libcapstone.so.5", "libcapstone.so.4")


class Instruction(NamedTuple):
    """One instruction; *operands* is text in Intel's order, *written* names registers."""

    address: int
    code: bytes
    mnemonic: str
    operands: str
    #: Empty where it was not asked for.
    written: tuple[str, ...] = ()


def decode(code: bytes, address: int = 0, *, registers: bool = False) -> Iterator[Instruction]:
    """The instructions of *code*, up to the first bytes that are not one."""
    return load().decode(code, address, registers=registers)


def texts(code: bytes) -> Iterator[tuple[str, str]]:
    """Mnemonic and operands of each of these instructions; takes half as long."""
    return load().texts(code)


@cache
def load() -> _Library | _Package:
    """Load the decoder; ImportError if there is none."""
    for name in (*_of_package(), *_NAMES):
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        major = found.cs_version(None, None) >> 8
        if major in _ROOM:
            return _Library(found, _ROOM[major])
    return _Package()


def _of_package() -> Iterator[str]:
    for folder in sys.path:
        path = f"{folder}/{_OF_PACKAGE}"
        if folder and os.path.exists(path):  # noqa: PTH110 - pathlib takes as long as all the rest
            yield path


class _Library:
    """The library itself; *room* is that of an instruction's bytes."""

    def __init__(self, library: ctypes.CDLL, room: int) -> None:
        class Row(ctypes.Structure):
            """``cs_insn``."""

            _fields_ = (
                ("id", ctypes.c_uint),
                ("address", ctypes.c_uint64),
                ("size", ctypes.c_uint16),
                ("bytes", ctypes.c_ubyte * room),
                ("mnemonic", ctypes.c_char * 32),
                ("operands", ctypes.c_char * 160),
                ("detail", ctypes.c_void_p),
            )

        self._library = library
        library.cs_disasm.restype = ctypes.c_size_t
        library.cs_disasm.argtypes = [
            *(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_size_t),
            ctypes.POINTER(ctypes.POINTER(Row)),
        ]
        library.cs_option.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
        library.cs_free.argtypes = [ctypes.POINTER(Row), ctypes.c_size_t]
        library.cs_reg_name.restype = ctypes.c_char_p
        library.cs_reg_name.argtypes = [ctypes.c_size_t, ctypes.c_uint]
        library.cs_regs_access.argtypes = [ctypes.c_size_t, *[ctypes.c_void_p] * 5]
        self._row: Any = Row
        self._plain, self._detailed = self._open(), self._open()
        library.cs_option(self._detailed, _DETAIL, _ON)

    def _open(self) -> int:
        handle = ctypes.c_size_t()
        if self._library.cs_open(_X86, _MODE_64, ctypes.byref(handle)):
            raise ImportError("this build of capstone cannot decode x86-64")
        return handle.value

    def decode(self, code: bytes, address: int, *, registers: bool) -> Iterator[Instruction]:
        """See :func:`decode`."""
        engine = self._detailed if registers else self._plain
        rows = ctypes.POINTER(self._row)()
        count = self._library.cs_disasm(engine, code, len(code), address, 0, ctypes.byref(rows))
        try:
            for index in range(count):
                row = rows[index]
                yield Instruction(
                    row.address,
                    bytes(row.bytes[: row.size]),
                    row.mnemonic.decode(),
                    row.operands.decode(),
                    self._written(row) if registers else (),
                )
        finally:
            if count:
                self._library.cs_free(rows, count)

    def texts(self, code: bytes) -> Iterator[tuple[str, str]]:
        """See :func:`texts`."""
        rows = ctypes.POINTER(self._row)()
        count = self._library.cs_disasm(self._plain, code, len(code), 0, 0, ctypes.byref(rows))
        try:
            size = ctypes.sizeof(self._row)
            mnemonic, operands = self._row.mnemonic.offset, self._row.operands.offset
            data = ctypes.string_at(rows, count * size) if count else b""
            for at in range(0, len(data), size):
                first, second = at + mnemonic, at + operands
                yield (
                    data[first : data.index(b"\0", first)].decode(),
                    data[second : data.index(b"\0", second)].decode(),
                )
        finally:
            if count:
                self._library.cs_free(rows, count)

    def _written(self, row: Any) -> tuple[str, ...]:
        read, written = (ctypes.c_uint16 * _REGISTERS)(), (ctypes.c_uint16 * _REGISTERS)()
        reads, writes = ctypes.c_uint8(), ctypes.c_uint8()
        self._library.cs_regs_access(
            self._detailed,
            ctypes.addressof(row),
            read,
            ctypes.byref(reads),
            written,
            ctypes.byref(writes),
        )
        names = (self._library.cs_reg_name(self._detailed, n) for n in written[: writes.value])
        return tuple(name.decode() for name in names if name)


class _Package:
    """The library as its package loads it, whatever its version."""

    def __init__(self) -> None:
        import capstone

        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._engine.detail = True

    def decode(self, code: bytes, address: int, *, registers: bool) -> Iterator[Instruction]:
        """See :func:`decode`."""
        for found in self._engine.disasm(code, address):
            written = found.regs_access()[1] if registers else ()
            yield Instruction(
                found.address,
                bytes(found.bytes),
                found.mnemonic,
                found.op_str,
                tuple(found.reg_name(number) for number in written),
            )

    def texts(self, code: bytes) -> Iterator[tuple[str, str]]:
        """See :func:`texts`."""
        for found in self._engine.disasm(code, 0):
            yield found.mnemonic, found.op_str
