# SPDX-License-Identifier: Apache-2.0
"""
The structs of a BPF object, out of its BTF, and how they differ from numpy's.

The format: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from pathlib import Path

INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
TYPEDEF, VOLATILE, CONST, RESTRICT = 8, 9, 10, 11
FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 13, 14, 15, 17, 19

#: Bytes that follow the common header of a type, by its kind and its number of members.
_TRAILERS = {INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8)}
_TRAILERS |= {FUNC_PROTO: (0, 8), VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12)}


@dataclass(frozen=True)
class Field:
    """
    One member: all but *count* and *signed* in bytes; *count* is 1 where it is no array.
    """

    name: str
    offset: int
    size: int
    count: int
    signed: bool


@dataclass(frozen=True)
class Shape:
    size: int
    fields: tuple[Field, ...]


class Btf:
    """
    The types of one object.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            data = ELFFile(file).get_section_by_name(".BTF").data()
        magic, _, _, header, types, types_size, strings, _ = struct.unpack_from("<HBBIIIII", data)
        assert magic == 0xEB9F
        self._strings = data[header + strings :]
        self._types: list[tuple[str, int, int, int, bytes]] = [("void", 0, 0, 0, b"")]
        at, end = header + types, header + types + types_size
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            fixed, each = _TRAILERS.get(kind, (0, 0))
            at += 12 + fixed + each * members
            trailer = data[at - fixed - each * members : at]
            self._types.append((self._text(name), kind, members, size, trailer))

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(0, offset)].decode()

    def shape(self, name: str, kind: int = STRUCT) -> Shape | None:
        """
        The struct of that name, or None.
        """
        for found, found_kind, members, size, trailer in self._types:
            if (found, found_kind) == (name, kind):
                rows = struct.iter_unpack("<III", trailer)
                fields = tuple(self._field(*row) for row in rows)
                assert members == len(fields)
                return Shape(size, fields)
        return None

    def _field(self, name: int, number: int, bits: int) -> Field:
        size, count, signed = self._measure(number)
        assert bits % 8 == 0
        return Field(self._text(name), bits // 8, size, count, signed)

    def _measure(self, number: int) -> tuple[int, int, bool]:
        """
        Size of an element, number of elements, and whether it is signed.
        """
        _, kind, _, size, trailer = self._types[number]
        if kind in (TYPEDEF, VOLATILE, CONST, RESTRICT):
            return self._measure(size)
        if kind == ARRAY:
            element, _, length = struct.unpack("<III", trailer)
            inner, count, signed = self._measure(element)
            return inner, count * length, signed
        if kind == INT:
            encoding = struct.unpack("<I", trailer)[0] >> 24 & 15
            return size, 1, bool(encoding & 1)
        return (8 if kind == PTR else size), 1, False


def shape_of(dtype: np.dtype, skip: int = 0) -> Shape:
    """
    The same of a dtype, from its byte *skip* on.
    """
    fields = []
    for name in dtype.names or ():
        field, offset = dtype.fields[name][:2]
        if offset < skip:
            continue
        base = field.base
        if base.kind == "S":  # text: bytes, which C calls signed or not as it likes
            fields.append(Field(name, offset - skip, 1, base.itemsize, signed=True))
            continue
        count = int(np.prod(field.shape)) if field.shape else 1
        fields.append(Field(name, offset - skip, base.itemsize, count, base.kind == "i"))
    return Shape(dtype.itemsize - skip, tuple(fields))


def differences(name: str, theirs: Shape | None, ours: Shape) -> list[str]:
    """
    A line for each difference between the object's struct and the dtype.
    """
    if theirs is None:
        return [f"{name}: the object's BTF does not have it"]
    lines = []
    if theirs.size != ours.size:
        lines.append(f"{name}: {theirs.size} bytes in the object, {ours.size} in the dtype")
    here = {field.name: field for field in ours.fields}
    there = {field.name: field for field in theirs.fields}
    return lines + [
        f"{name}.{field}: {there.get(field)} is not {here.get(field)}"
        for field in dict.fromkeys([*there, *here])
        if there.get(field) != here.get(field)
    ]
