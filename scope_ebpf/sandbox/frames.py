# SPDX-License-Identifier: Apache-2.0
"""
Call frame information (``.eh_frame``) of one file, a function at a time. Runs confined.

One description is looked up in ``.eh_frame_hdr`` and parsed by pyelftools when an address within
it is asked for; a file of any size costs only what is used of it. Formats: LSB 5.0, "Exception
Frames"; DWARF 5, 6.4.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING, Any

from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from scope_ebpf.sandbox import limits
from scope_ebpf.sandbox.limits import MalformedError

if TYPE_CHECKING:
    from scope_ebpf.sandbox.elf import Elf

#: Start of a row, and its rule: base, offset, saved registers, whether there is no caller.
Row = tuple[int, tuple[int, int, dict[str, int], bool] | None]

#: Version 1; the frame pointer relative to here, a count, a table of pairs relative to the header.
_HEADER = b"\x01\x1b\x03\x3b"
_ENTRY = struct.Struct("<ii")
#: Number of the return address (System V ABI for x86-64, "DWARF Register Number Mapping").
RETURN = 16
#: DWARF numbers registers with less.
_MOST_REGISTER = 1 << 15
#: Nothing of a frame is further from anything else, bytes.
_FAR = 1 << 31
#: The linker's rule for every stub of its jump tables: it depends on the offset in the stub.
_STUBS = bytes.fromhex("770880003f1a3b2a332422")


class CallFrames:
    """Call frame information by addresses of the file."""

    def __init__(self, elf: Elf) -> None:
        self._header, self._data = b"", b""
        header, data = elf.section(".eh_frame_hdr"), elf.section(".eh_frame")
        header_at, address = elf.address(".eh_frame_hdr"), elf.address(".eh_frame")
        self._count, self._header_at, self._address = 0, header_at or 0, address or 0
        if not (header and data and header_at and address) or header[:4] != _HEADER:
            return
        self._header, self._data = header, data
        fits = max(0, len(header) - 12) // _ENTRY.size
        self._count = min(int.from_bytes(header[8:12], "little"), fits)

    def function(self, address: int) -> tuple[int, int, list[Row]] | None:
        """(start, end, rows) of the description before *address*, or None."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry_at(middle)[0] <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        start, description = self._entry_at(low - 1)
        parsed = self._parse(description - self._address)
        return (start, *parsed) if parsed and 0 <= start < parsed[0] < 1 << 63 else None

    def _entry_at(self, index: int) -> tuple[int, int]:
        start, description = _ENTRY.unpack_from(self._header, 12 + index * _ENTRY.size)
        return self._header_at + start, self._header_at + description

    def _parse(self, offset: int) -> tuple[int, list[Row]] | None:
        body = self._entry(offset)
        common = offset + 4 - struct.unpack_from("<I", body, 4)[0]
        head = self._entry(common)
        # The two alone, one behind the other, as a file of their own.
        body = body[:4] + struct.pack("<I", len(head) + 4) + body[8:]
        stream = head + body + b"\0\0\0\0"
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        parsed = CallFrameInfo(
            BytesIO(stream),
            len(stream),
            self._address + offset - len(head),
            structs,
            for_eh_frame=True,
        ).get_entries()
        for entry in parsed:
            if isinstance(entry, FDE):
                start = entry["initial_location"]
                table = entry.get_decoded().table[: limits.ROWS]
                rows = [(row["pc"], _rules(row)) for row in table if 0 <= row["pc"] < 1 << 63]
                return start + entry["address_range"], rows
        return None

    def _entry(self, offset: int) -> bytes:
        if offset < 0:
            raise MalformedError("a frame description before the first one")
        (size,) = struct.unpack_from("<I", self._data, offset)
        if not 4 < size <= limits.DESCRIPTION:
            raise MalformedError(f"a frame description of {size} bytes")
        return self._data[offset : offset + 4 + size]


def _rules(row: dict[Any, Any]) -> tuple[int, int, dict[str, int], bool] | None:
    cfa = row["cfa"]
    expression = getattr(cfa, "expr", None)
    saved: dict[str, int] = {}
    outermost = False
    for register, rule in row.items():
        if not isinstance(register, int):
            continue
        kind = getattr(rule, "type", "")
        if kind == "OFFSET" and register <= RETURN:
            saved[str(register)] = rule.arg
        elif kind == "UNDEFINED" and register == RETURN:
            outermost = True
        elif kind not in ("OFFSET", "SAME_VALUE", "UNDEFINED"):
            return None  # by an expression: signal handlers and hand-written code
    if expression is not None:
        return (RETURN, 0, saved, False) if bytes(expression) == _STUBS else None
    numbers = (cfa.offset, *saved.values())
    if not 0 <= cfa.reg <= _MOST_REGISTER or not all(-_FAR < number < _FAR for number in numbers):
        return None
    return cfa.reg, cfa.offset, saved, outermost
