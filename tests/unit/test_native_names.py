# SPDX-License-Identifier: Apache-2.0
"""
Tables of BIFs and NIFs in memory that was made up, and what is no table.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scope_ebpf.beam.code import natives
from scope_ebpf.beam.code.natives import Natives
from scope_ebpf.errors import ReadRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE, DATA, TEXT, SIZE = 0x10000, 0x4000, 0x1000, 0x2000
COUNT = 323
NAMES = ["false", "true", "erlang", "abs", *(f"bif_{n}" for n in range(COUNT))]


def atom(name: str) -> int:
    return NAMES.index(name) << 6 | 0x0B


class _Atoms:
    """
    The atoms of NAMES.
    """

    def term(self, name: str) -> int:
        return atom(name)

    def texts(self, indices: Iterable[int]) -> dict[int, str | None]:
        return {i: NAMES[i] if i < len(NAMES) else None for i in indices}


class _Memory:
    """
    Bytes at addresses; everything else is not mapped.
    """

    def __init__(self, parts: dict[int, bytes]) -> None:
        self.parts = parts

    def read(self, address: int, size: int) -> bytes:
        for start, data in self.parts.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start :][:size]
        raise ReadRefusedError("not mapped")

    def words(self, address: int, count: int) -> np.ndarray:
        return np.frombuffer(self.read(address, 8 * count), np.uint64)

    def gather(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.zeros((len(addresses), size), np.uint8)
        good = np.zeros(len(addresses), np.bool_)
        for row, address in enumerate(addresses.tolist()):
            try:
                rows[row] = np.frombuffer(self.read(address, size), np.uint8)
                good[row] = True
            except ReadRefusedError:
                pass
        return rows, good


def entry(name: str, arity: int = 1, called: int = 0, function: int = 0, kind: int = 0) -> bytes:
    called = called or BASE + TEXT
    words = (atom("erlang"), atom(name), arity, called, function or called, kind)
    return struct.pack("<QQqQQQ", *words)


def table(count: int = COUNT, first: int = BASE + TEXT) -> list[bytes]:
    """
    ``erlang:abs/1`` and as many others as make *count*, 16 bytes of code each.
    """
    names = ["abs", *(f"bif_{n}" for n in range(count - 1))]
    return [entry(name, called=first + 16 * n) for n, name in enumerate(names)]


def found(data: bytes, parts: dict[int, bytes] | None = None) -> Natives:
    sections = {".data": (DATA, len(data)), ".text": (TEXT, SIZE + 16 * COUNT)}
    binary = SimpleNamespace(section_address=sections.get)
    memory = _Memory({BASE + DATA: data, **(parts or {})})
    target: Any = SimpleNamespace(binary=binary, memory=memory, base=BASE)
    atoms: Any = _Atoms()
    return Natives(target, atoms)


def test_each_entry_of_the_table_names_its_function():
    """
    All 323 names, wherever the table lies, and one of a dirty BIF by the function that works.
    """
    rows = table()
    rows[23] = entry("bif_22", 2, BASE + TEXT, BASE + TEXT + 16 * 23)
    for before in (b"", b"\1" * 8, struct.pack("<Q", atom("abs")) * 7):
        names = found(before + b"".join(rows) + b"\xff" * 100).bifs
        assert COUNT == len(names)
        assert "erlang:abs/1 (BIF)" == names[BASE + TEXT]
        assert "erlang:bif_22/2 (BIF)" == names[BASE + TEXT + 16 * 23]
        assert f"erlang:bif_{COUNT - 2}/1 (BIF)" == names[BASE + TEXT + 16 * (COUNT - 1)]


@pytest.mark.parametrize(
    "bad",
    [
        entry("abs", -1),
        entry("abs", 256),
        entry("abs", kind=3),
        entry("abs", called=BASE + TEXT - 1),
        entry("abs", function=BASE + TEXT + SIZE + 16 * COUNT),
        b"\0" * 48,
        struct.pack("<QQqQQQ", 0x23, atom("abs"), 1, BASE + TEXT, BASE + TEXT, 0),
    ],
)
def test_what_is_no_table_as_a_whole_names_nothing(bad: bytes):
    """
    An entry that cannot be one ends the table, and what is left of it is too short to be believed.
    """
    rows = table()
    rows[100] = bad
    assert {} == found(b"".join(rows)).bifs


def test_a_table_that_is_not_certain_names_nothing():
    """
    Two tables, one that is too short or too large, and none.
    """
    whole = b"".join(table())
    assert {} == found(whole + b"\0" * 48 + whole).bifs
    assert {} == found(b"".join(table(natives._LEAST - 1))).bifs
    large = b"".join(table() + [entry("bif_0")] * natives._MOST)
    assert {} == found(large).bifs
    assert {} == found(b"").bifs
    assert {} == found(b"\0" * 4801).bifs
    assert {} == found(entry("abs")[:44]).bifs


def test_a_function_with_two_names_has_none():
    """
    Who has the address of another one is not named, nor is that one; the rest are.
    """
    rows = table()
    rows[7] = entry("bif_6", called=BASE + TEXT + 16 * 8)
    names = found(b"".join(rows)).bifs
    assert COUNT - 2 == len(names)
    assert BASE + TEXT + 16 * 8 not in names


PLACE, TABLE, TEXTS = 0x100000, 0x101000, 0x102000


def library(functions: list[tuple[int, int, int]], count: int | None = None) -> dict[int, bytes]:
    """
    An erl_module_nif of the module ``true``, with functions of offset of name, arity and address.
    """
    words = [7, 0, TEXTS, len(functions) if count is None else count, TABLE]
    head = struct.pack("<64Q", *words, *[0] * (64 - len(words)))
    rows = b"".join(struct.pack("<QQQQ", TEXTS + at, *rest, 0) for at, *rest in functions)
    return {PLACE: head, TABLE: rows, TEXTS: b"true\0first\0second\0" + b"x" * 300}


@pytest.fixture
def nifs(monkeypatch: pytest.MonkeyPatch):
    def give(parts: dict[int, bytes], place: int = PLACE) -> dict[int, str]:
        modules = SimpleNamespace(natives=lambda: {("true", place)})
        monkeypatch.setattr(natives, "Modules", lambda *_: modules)
        return found(b"", parts).nifs

    return give


def test_each_nif_of_a_library_is_named(nifs):
    """
    With all of its arities, where one function has several; not if it has two names.
    """
    functions = [(5, 2, 0x51), (11, 0, 0x52), (11, 3, 0x52), (5, 4, 0x53), (11, 4, 0x53)]
    expected = {0x51: "true:first/2 (NIF)", 0x52: "true:second/0,3 (NIF)"}
    assert expected == nifs(library(functions))


def test_a_list_of_nifs_that_lies_names_nothing(nifs):
    """
    Counts that are too large, names without an end, too many arguments, and what is not mapped.
    """
    good = [(5, 2, 0x51)]
    for count in (0, 2, natives._MOST_OF_MODULE + 1, 1 << 31):
        assert {} == nifs(library(good, count))
    assert {} == nifs(library([(18, 2, 0x51), (5, 256, 0x52), (1 << 40, 0, 0x53)]))
    assert {} == nifs(library(good), PLACE + 1)
    assert {} == nifs(library(good), 0xDEAD000)
