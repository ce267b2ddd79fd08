# SPDX-License-Identifier: Apache-2.0
"""
A VM's memory made by hand: a few processes, atoms, messages and links in a flat image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from scope_ebpf.beam import layouts
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.errors import ReadRefusedError

PAGE = 4096
BASE = 0x10000
ATOMS = [
    "false", "true", "_", "normal", "$initial_call", "$ancestors", "names_server", "init",
    "gen_server", "loop", "my_name", "erlang", "apply", "$gen_call", "module_info",
]  # fmt: skip


class ImageMemory(Memory):
    """
    Reads from an image instead of a process; *holes* are pages that are not mapped.
    """

    def __init__(self, image: bytearray) -> None:
        super().__init__(0)
        self.image = image
        self.holes: set[int] = set()

    def _read(self, address: int, size: int) -> bytes:
        out = np.empty(size, np.uint8)
        got = self._readv(out, np.array([(address, size)], "<u8,<u8"))
        return out[:got].tobytes()

    def _readv(self, out: np.ndarray, remote: np.ndarray) -> int:
        self.calls += 1
        done = 0
        for base, length in remote.tolist():
            for page in range(base // PAGE, (base + max(length, 1) - 1) // PAGE + 1):
                if page in self.holes or not BASE <= page * PAGE < BASE + len(self.image):
                    return done
            out[done : done + length] = np.frombuffer(self.image, np.uint8, length, base - BASE)
            done += length
        return done


@dataclass
class Image:
    """
    The image under construction, and the address of each global in it.
    """

    data: bytearray = field(default_factory=lambda: bytearray(64))
    roots: dict[str, int] = field(default_factory=dict)
    layout: layouts.Layout = field(
        default_factory=lambda: layouts.load(25, usdt=False, interpreter=False)
    )
    pid: int = 0
    otp_release: str = "25"
    erts_version: str = "13.1.5"

    def put(self, data: bytes) -> int:
        """
        Add some bytes; say at which address.
        """
        self.data += b"\0" * (-len(self.data) % 16)
        address = BASE + len(self.data)
        self.data += data
        return address

    def words(self, *words: int) -> int:
        return self.put(struct.pack(f"<{len(words)}Q", *words))

    def struct(self, name: str, /, **fields: tuple[int, str]) -> bytes:
        """
        One struct of the layout; ``common__id=(1, "Q")`` is the field ``common.id``.
        """
        data = bytearray(self.layout.size(name))
        for key, (value, kind) in fields.items():
            offset = self.layout.offset(name, key.replace("__", "."))
            struct.pack_into("<" + kind, data, offset, value)
        return bytes(data)

    @property
    def memory(self) -> ImageMemory:
        if not hasattr(self, "_memory"):
            self.data += b"\0" * (-len(self.data) % PAGE)
            self._memory = ImageMemory(self.data)
        return self._memory

    def address(self, name: str) -> int:
        if name not in self.roots:
            raise ReadRefusedError(f"no {name}")
        return self.roots[name]

    def find(self, name: str) -> int | None:
        return self.roots.get(name)


def atom(name: str) -> int:
    return ATOMS.index(name) << 6 | 0x0B


def pid(slot: int) -> int:
    return slot << 32 | slot << 4 | 3


def make(processes: int = 8) -> Image:
    """
    A VM with some processes, each a gen_server with a name, a dictionary, two messages and a link.
    """
    image = Image()
    add_atoms(image)
    add_code(image)
    slots = [_process(image, slot) for slot in range(processes)]
    size = 1 << (len(slots) + 7).bit_length()
    table = image.words(*slots, *([0] * (size - len(slots))))
    image.roots["erts_proc"] = image.put(
        image.struct(
            "ErtsPTab",
            r__o__tab=(table, "Q"),
            r__o__max=(size, "I"),
            r__o__pix_mask=(size - 1, "I"),
            r__o__element_size=(image.layout.size("Process"), "Q"),
            r__o__invalid_element=(1, "Q"),
            vola__tile__count=(len(slots), "I"),
        )
    )
    image.roots["erts_port"] = image.roots["erts_proc"]
    return image


def add_atoms(image: Image) -> None:
    """
    The table of ATOMS.
    """
    entries = []
    for index, name in enumerate(ATOMS):
        text = image.put(name.encode())
        entries.append(
            image.put(
                image.struct(
                    "Atom", slot__index=(index, "I"), len=(len(name), "H"), name=(text, "Q")
                )
            )
        )
    segments = image.words(image.words(*entries, *([0] * (1024 - len(entries)))))
    image.roots["erts_atom_table"] = image.put(
        image.struct("IndexTable", entries=(len(ATOMS), "I"), seg_table=(segments, "Q"))
    )


def line_table(image: Image, names: tuple[str, ...], location: int) -> int:
    """
    A table of three functions, of which the first has one *location*; its address.

    Where the functions begin and end is not known yet. The files that it names are atoms or texts,
    as the release has them.
    """
    words = [atom(n) if image.layout.release < 25 else text(image, n) for n in names]
    layout = image.layout
    head = layout.offset("BeamCodeLineTab", "func_tab")
    table = image.put(bytes(head) + struct.pack(f"<{len(words) + 7}Q", *[0] * 6, *words, location))
    rows = table + head + 32
    files = rows + 16
    for member, value in (("fname_ptr", files), ("loc_tab", files + 8 * len(words))):
        struct.pack_into(
            "<Q", image.data, table - BASE + layout.offset("BeamCodeLineTab", member), value
        )
    size = table - BASE + layout.offset("BeamCodeLineTab", "loc_size")
    struct.pack_into("<I", image.data, size, 4)
    struct.pack_into("<4Q", image.data, rows - BASE - 32, rows, *[rows + 8] * 3)
    return table


def text(image: Image, characters: str) -> int:
    """
    A list of characters.
    """
    rest = 0x3B
    for character in reversed(characters):
        rest = image.words(ord(character) << 4 | 0xF, rest) | 1
    return rest


def add_code(image: Image, lines: int = 0) -> None:
    """
    One module, gen_server, with loop/7 and the two functions that every module has.

    Its line numbers are in a table at *lines*.
    """
    names = (("loop", 7), ("module_info", 0), ("module_info", 1))
    code = b"".join(
        struct.pack("<5Q", 0, 0, atom("gen_server"), atom(name), arity) + bytes(64)
        for name, arity in names
    )
    header = bytearray(image.layout.offset("BeamCodeHeader", "functions") + 8 * (len(names) + 1))
    start = image.put(bytes(header) + code)
    first, offset = start + len(header), start - BASE
    one = len(code) // len(names)
    starts = [first + one * number for number in range(len(names) + 1)]
    struct.pack_into("<Q", image.data, offset, len(names))
    struct.pack_into(f"<{len(starts)}Q", image.data, first - 8 * len(starts) - BASE, *starts)
    if lines:
        field = image.layout.offset("BeamCodeHeader", "line_table")
        struct.pack_into("<Q", image.data, offset + field, lines)
        rows = lines - BASE + image.layout.offset("BeamCodeLineTab", "func_tab") + 8 * len(starts)
        struct.pack_into("<2Q", image.data, rows, starts[0], starts[-1])
    ranges = image.words(start, starts[-1])
    image.roots["r"] = image.words(*([ranges, 1, 1, ranges] * 3))
    image.roots["pc"] = first + 48


def _process(image: Image, slot: int) -> int:
    size = image.layout.size("Process")
    # The word before it is the size of its block.
    address = image.put(struct.pack("<QQ", 0, size + 8) + bytes(size)) + 16
    call = image.words(3 << 6, atom("names_server"), atom("init"), 1 << 4 | 0xF) | 2
    pair = image.words(2 << 6, atom("$initial_call"), call) | 2
    index = ATOMS.index("$initial_call")
    data = [0x3B] * 8
    data[index & 7] = image.words(pair, 0x3B) | 1
    dictionary = image.put(struct.pack("<4IQ8Q", 7, 8, 8, 0, 1, *data))
    request = image.words(2 << 6, atom("my_name"), atom("normal")) | 2
    message = image.words(3 << 6, atom("$gen_call"), atom("normal"), request) | 2
    # In one block with its payload of one word: the block says how large it is.
    body = bytearray(image.struct("ErtsMessage", data=(1, "Q"), m=(message, "Q")))
    used = image.layout.offset("ErtsMessage", "hfrag.used_size")
    struct.pack_into("<QQ", body, used - 8, 1, 1)
    struct.pack_into("<Q", body, image.layout.offset("ErtsMessage", "m") + 8, 0x3B)  # no token
    second = image.put(struct.pack("<QQ", 0, len(body) + 8) + body) + 16
    head = bytearray(image.struct("ErtsMessage", next=(second, "Q"), m=(atom("normal"), "Q")))
    struct.pack_into("<Q", head, image.layout.offset("ErtsMessage", "m") + 8, 0x3B)
    first = image.put(bytes(head))
    node = bytearray(image.struct("ErtsMonLnkNode", type=(10, "H")) + bytes(8))  # ErtsILink
    behind = image.layout.offset("ErtsMonLnkNode", "offset") + 2
    struct.pack_into("<H", node, behind, image.layout.offset("ErtsMonLnkNode", "other"))
    link = image.put(struct.pack("<QQ", 0, len(node) + 8) + node) + 16
    name = image.put(image.struct("RegProc", p=(address, "Q"), name=(atom("my_name"), "Q")))
    heap = image.put(bytes(8 * 32))
    stop = heap + 8 * 28
    struct.pack_into("<Q", image.data, stop - BASE, image.roots["pc"])
    row = image.struct(
        "Process",
        common__id=(pid(slot), "Q"),
        common__u__alive__reg=(name, "Q"),
        common__u__alive__links=(link, "Q"),
        heap=(heap, "Q"),
        htop=(heap + 64, "Q"),
        stop=(stop, "Q"),
        hend=(heap + 8 * 32, "Q"),
        heap_sz=(32, "Q"),
        arg_reg=(address + image.layout.offset("Process", "def_arg_reg"), "Q"),
        i=(image.roots["pc"], "Q"),
        reds=(1000 + slot, "Q"),
        dictionary=(dictionary, "Q"),
        u__initial__module=(atom("erlang"), "Q"),
        u__initial__function=(atom("apply"), "Q"),
        u__initial__arity=(2, "Q"),
        parent=(pid(0), "Q"),
        group_leader=(pid(0), "Q"),
        sig_qs__first=(first, "Q"),
        sig_qs__last=(second + image.layout.offset("ErtsMessage", "next"), "Q"),
        sig_qs__len=(2, "Q"),
    )
    image.data[address - BASE : address - BASE + size] = row
    return address
