# SPDX-License-Identifier: Apache-2.0
"""
An image under construction, and the terms in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from space import BASE, SECTIONS, File, Space, filled, packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from measured import Measured

KINDS: Final = ("normal", "dirty_cpu", "dirty_io")
ATOMS: Final = (
    "false", "true", "_", "nonode@nohost", "$initial_call", "$ancestors", "$process_label",
    "normal", "shutdown", "killed", "erlang", "self", "apply", "gen_server", "loop", "shop",
    "order", "wait", "audit", "names_server", "init", "checkout", "kernel_sup", "shop.erl",
    "gen_server.erl", "module_info", "shop@node1", "shop@node2", "shop@node3", "hidden@node",
    "coming@node",
)  # fmt: skip
#: Slots of a table.
SLOTS: Final = 1024


def atom(text: str) -> int:
    """
    The term of an atom.
    """
    return ATOMS.index(text) << 6 | 0x0B


@dataclass
class Image:
    """
    A VM of the *release*, with so many *schedulers* of each kind.

    *hidden* VMs have no symbols but those of functions for native code.
    """

    release: Measured
    schedulers: tuple[int, int, int] = (3, 2, 5)
    hidden: bool = False
    noise: bool = False
    space: Space = field(init=False)
    file: File = field(default_factory=File)
    truth: dict[str, Any] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.space = Space(noise=self.noise)
        self._free = {name: address for name, (address, _) in SECTIONS.items()}

    def struct(self, name: str, /, **fields: tuple[int, str]) -> bytes:
        """
        The bytes of one struct.
        """
        return filled(self.space, self.release, name, **fields)

    def put(self, name: str, /, **fields: tuple[int, str]) -> int:
        """
        Add a struct to the heap; its address.
        """
        return self.space.put(self.struct(name, **fields))

    def variable(self, name: str, data: bytes, section: str = ".bss") -> int:
        """
        Add a global; its address in memory. Its symbol is there unless the VM hides it.
        """
        at = -(-self._free[section] // 64) * 64
        start, size = SECTIONS[section]
        assert at + len(data) <= start + size
        self._free[section] = at + len(data)
        self.space.write(BASE + at, data)
        self.addresses[name] = BASE + at
        if not self.hidden:
            self.file.symbols[name] = (at, len(data))
        return BASE + at

    def static(self, name: str, data: bytes, section: str = ".bss") -> int:
        """
        Add a global that no VM has a symbol of.
        """
        address = self.variable(name, data, section)
        self.file.symbols.pop(name, None)
        return address

    def text(self, text: bytes) -> int:
        """
        Add a text to the file's constants, behind something that is no text; its address.
        """
        address = self.static(f"text {text!r}", b"\xff" + text + b"\0", ".rodata") + 1
        self.file.texts[text + b"\0"] = address - BASE
        return address


def pid(image: Image, data: int) -> int:
    """
    The term of the pid that the VM numbers *data*.
    """
    return identifier(image, data, 0x3)


def identifier(image: Image, data: int, tag: int) -> int:
    slot = slot_of(data)
    if image.release.otp < 26:
        return slot << 32 | (data & 0x0FFF_FFFF) << 4 | tag
    return (data & ~(SLOTS - 1) | slot) << 4 | tag


def slot_of(data: int) -> int:
    """
    The slot: neighbours lie in different cache lines (erl_ptab.c), eight slots a line.
    """
    lines = SLOTS // 8
    return (data & lines - 1) << 3 | (data >> lines.bit_length() - 1) & 7


def pid_text(image: Image, data: int) -> str:
    """
    As Erlang writes the pid.
    """
    bits = 15 if image.release.otp < 26 else 28
    return f"<0.{data & (1 << bits) - 1}.{data >> bits}>"


def index_table(image: Image, name: int, entries: Iterable[int], limit: int) -> bytes:
    pointers = list(entries)
    segment = image.space.put(packed(*pointers) + bytes(8 * (1024 - len(pointers))))
    return image.struct(
        "IndexTable",
        htable__name=(name, "Q"),
        size=(1024, "i"),
        limit=(limit, "i"),
        entries=(len(pointers), "i"),
        seg_table=(image.space.words(segment), "Q"),
    )
