# SPDX-License-Identifier: Apache-2.0
"""
Atoms and code of an image.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from space import packed
from vm_base import ATOMS, atom, index_table

if TYPE_CHECKING:
    from vm_base import Image

#: Functions by module, with the line of each.
_INFO: Final = (("module_info", 0, 401), ("module_info", 1, 401))
CODE: Final = {
    "erlang": (("self", 0, 11), *_INFO),
    "gen_server": (("loop", 7, 423), *_INFO),
    "shop": (("order", 1, 23), ("wait", 1, 3166), ("audit", 3, 97), *_INFO),
}
#: The JIT begins a function with a jump over a call.
_BEGINNING: Final = b"\xeb\x06\x90\xe8\0\0\0\0"


def atoms(image: Image) -> None:
    entries = []
    for index, text in enumerate(ATOMS):
        data = text.encode()
        if image.release.has("Atom", "u.bin"):  # a heap binary: header, size, bytes
            name = {
                "u__bin": (image.space.put(packed(3 << 6 | 0x24, 8 * len(data)) + data) | 2, "Q")
            }
        else:
            name = {"name": (image.space.put(data), "Q")}
        fields = {"slot__index": (index, "i"), "len": (len(data), "h"), **name}
        entries.append(image.put("Atom", **fields))
    name_at = image.text(b"atom_tab")
    image.variable("erts_atom_table", index_table(image, name_at, entries, 1 << 20))
    image.truth["atoms"] = {"atoms": len(ATOMS), "limit": 1 << 20}


def code(image: Image) -> None:
    """
    Two modules, each with its functions, lines and attributes, in all three sets of ranges.
    """
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    image.truth["code"] = {}
    for module, functions in CODE.items():
        starts[module], ends[module] = _module(image, module, functions)
    pairs = image.space.words(*(word for m in sorted(starts, key=lambda m: starts[m])
                                for word in (starts[m], ends[m])))  # fmt: skip
    one = image.struct(
        "ranges",
        modules=(pairs, "Q"),
        n=(len(starts), "q"),
        allocated=(len(starts), "q"),
        mid=(pairs + 16, "Q"),
    )
    image.static("r", one * 3, ".data")
    image.variable("the_active_code_index", struct.pack("<I", 1))
    name = image.text(b"module_code")
    tables = b""
    for _ in range(3):
        rows = [
            image.put(
                "Module",
                slot__index=(index, "i"),
                module=(ATOMS.index(module), "i"),
                curr__code_hdr=(start, "Q"),
                old__code_hdr=(0, "Q"),
            )
            for index, (module, start) in enumerate(starts.items())
        ]
        tables += index_table(image, name, rows, 1 << 16)
    image.static("module_tables", tables)


def _module(
    image: Image, module: str, functions: tuple[tuple[str, int, int], ...]
) -> tuple[int, int]:
    """
    Add one module's code; its beginning and end.
    """
    space, release = image.space, image.release
    info, body = release.size("ErtsCodeInfo"), 64
    first = release.offset("BeamCodeHeader", "functions")
    head = first + 8 * (len(functions) + 1)
    size = head + (info + body) * len(functions)
    start = space.reserve(size)
    at = [start + head + (info + body) * number for number in range(len(functions) + 1)]
    lines = _lines(image, module, at, [line for _, _, line in functions])
    attributes = b"\x83l\0\0\0\x01h\x02d\0\x09behaviourl\0\0\0\x01d\0\x0agen_serverjj"
    header = bytearray(space.blank(first))
    for name, value in {
        "num_functions": len(functions),
        "attr_ptr": space.put(attributes),
        "attr_size": len(attributes),
        "line_table": lines,
    }.items():
        struct.pack_into("<Q", header, release.offset("BeamCodeHeader", name), value)
    code = bytes(header) + packed(*at)
    for name, arity, line in functions:
        code += image.struct(
            "ErtsCodeInfo",
            mfa__module=(atom(module), "Q"),
            mfa__function=(atom(name), "Q"),
            mfa__arity=(arity, "Q"),
        ) + (bytes(8) if release.build == "emu" else _BEGINNING).ljust(body, b"\0")
        entry = start + len(code) - body
        image.addresses[f"{module}:{name}/{arity}"] = entry
        image.truth["code"][f"{module}:{name}/{arity}"] = (entry, f"{module}.erl", line)
    space.write(start, code)
    return start, start + size


def _lines(image: Image, module: str, functions: list[int], lines: list[int]) -> int:
    """
    Add a table of lines: one for each function, whose locations are of four bytes.
    """
    release = image.release
    # Number 0 is the module's own file, whose name is kept since OTP 25 only.
    names = [_characters(image, f"{module}.erl")] if release.otp >= 25 else []
    first = release.offset("BeamCodeLineTab", "func_tab")
    count = len(functions)
    size = first + 8 * count + 8 * count + 8 * len(names) + 4 * len(lines)
    table = image.space.reserve(size)
    rows = table + first + 8 * count
    files = rows + 8 * count
    data = bytearray(image.space.blank(first))
    for name, value, kind in (
        ("fname_ptr", files, "Q"),
        ("loc_size", 4, "i"),
        ("loc_tab", files + 8 * len(names), "Q"),
    ):
        struct.pack_into("<" + kind, data, release.offset("BeamCodeLineTab", name), value)
    data += packed(*(rows + 8 * number for number in range(count)), *functions, *names)
    image.space.write(table, bytes(data) + struct.pack(f"<{len(lines)}I", *lines))
    return table


def _characters(image: Image, text: str) -> int:
    rest = 0x3B
    for character in reversed(text):
        rest = image.space.words(ord(character) << 4 | 0xF, rest) | 1
    return rest
