# SPDX-License-Identifier: Apache-2.0
"""
Where a C function keeps its caller's registers: the call frame information of one file.

Stripped files without frame pointers still carry it (``.eh_frame``), because
C++ exceptions need it. One description is looked up in ``.eh_frame_hdr`` and
parsed by pyelftools when an address within it is met; a file of any size costs
only what is used of it. Formats: LSB 5.0, "Exception Frames"; DWARF 5, 6.4.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from scope_ebpf.beam.elf import PARSE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scope_ebpf.beam.binary import Binary

#: Numbers of registers (System V ABI for x86-64, "DWARF Register Number Mapping").
RBX, RBP, RSP, R12, R13, R14, R15, RETURN = 3, 6, 7, 12, 13, 14, 15, 16
#: Version 1; the frame pointer relative to here, a count, a table of pairs relative to the header.
_HEADER = b"\x01\x1b\x03\x3b"
_ENTRY = np.dtype([("start", "<i4"), ("description", "<i4")])
#: No description of one function is longer.
_MAX_DESCRIPTION = 1 << 16
#: What the linker says of every stub of its jump tables: how far in an address is decides.
_STUBS = bytes.fromhex("770880003f1a3b2a332422")
_STUB = 16


#: Behind all addresses that numpy's signed numbers hold.
_END = 1 << 63


class Rules(NamedTuple):
    """
    How to find the caller at one address.

    The frame begins at register *base* plus *offset*; *saved* tells how far from
    there each register lies. *outermost*: there is no caller.
    """

    base: int
    offset: int
    saved: Mapping[int, int]
    outermost: bool = False


class CallFrames:
    """Call frame information of one file, by addresses of the file."""

    def __init__(self, binary: Binary) -> None:
        self._starts = np.empty(0, np.int64)
        self._descriptions = np.empty(0, np.int64)
        self._data, self._address = b"", 0
        self._known: dict[int, Rules | None] = {}
        self._tables: dict[int, tuple[int, list[tuple[int, Rules | None]]] | None] = {}
        header, places = binary.section(".eh_frame_hdr"), binary.section_address(".eh_frame_hdr")
        data, place = binary.section(".eh_frame"), binary.section_address(".eh_frame")
        if not (header and places and data and place) or header[:4] != _HEADER:
            return
        if max(places[0], place[0]) >= _END:
            return  # no such address is a program's
        count = min(int.from_bytes(header[8:12], "little"), (len(header) - 12) // _ENTRY.itemsize)
        table = np.frombuffer(header, _ENTRY, count, offset=12)
        self._starts = places[0] + table["start"].astype(np.int64)
        self._descriptions = places[0] + table["description"].astype(np.int64)
        self._data, self._address = data, place[0]

    def function(self, address: int) -> int | None:
        """Tell where the function around *address* begins; a jump table is one function."""
        index = int(np.searchsorted(self._starts, address, side="right")) - 1
        if index < 0 or self._table(index) is None:
            return None
        end, _ = self._table(index) or (0, [])
        return int(self._starts[index]) if address < end else None

    def rules(self, address: int) -> Rules | None:
        """Tell how to find the caller from *address*; None where the file does not say."""
        if address not in self._known:
            self._known[address] = self._look_up(address)
        return self._known[address]

    def _look_up(self, address: int) -> Rules | None:
        index = int(np.searchsorted(self._starts, address, side="right")) - 1
        if index < 0:
            return None
        end, rows = self._table(index) or (0, [])
        found = None
        if address < end:
            for start, rules in rows:
                if start <= address:
                    found = rules
        if found is not None and found.base == RETURN:
            # A stub pushes one word more from its eleventh byte on.
            return Rules(RSP, 8 + 8 * (address % _STUB >= 11), found.saved)
        return found

    def _table(self, index: int) -> tuple[int, list[tuple[int, Rules | None]]] | None:
        """End of a function, and its rules from address to address."""
        if index not in self._tables:
            try:
                self._tables[index] = self._parse(int(self._descriptions[index]) - self._address)
            except PARSE_ERRORS:
                self._tables[index] = None
        return self._tables[index]

    def _parse(self, offset: int) -> tuple[int, list[tuple[int, Rules | None]]] | None:
        common = offset + 4 - struct.unpack_from("<I", self._data, offset + 4)[0]
        head, body = self._entry(common), self._entry(offset)
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
                rows = [(row["pc"], _rules(row)) for row in entry.get_decoded().table]
                return start + entry["address_range"], rows
        return None

    def _entry(self, offset: int) -> bytes:
        (size,) = struct.unpack_from("<I", self._data, offset)
        if not 4 < size <= _MAX_DESCRIPTION or offset < 0:
            raise ValueError(f"a frame description of {size} bytes")
        return self._data[offset : offset + 4 + size]


def _rules(row: dict[object, object]) -> Rules | None:
    cfa = row["cfa"]
    expression = getattr(cfa, "expr", None)
    saved: dict[int, int] = {}
    outermost = False
    for register, rule in row.items():
        if not isinstance(register, int):
            continue
        kind = getattr(rule, "type", "")
        if kind == "OFFSET":
            saved[register] = rule.arg  # type: ignore[attr-defined]
        elif kind == "UNDEFINED" and register == RETURN:
            outermost = True
        elif kind not in ("SAME_VALUE", "UNDEFINED"):
            return None  # by an expression: signal handlers and hand-written code
    if expression is not None:
        return Rules(RETURN, 0, saved) if bytes(expression) == _STUBS else None
    return Rules(cfa.reg, cfa.offset, saved, outermost)  # type: ignore[attr-defined]
