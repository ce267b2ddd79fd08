# SPDX-License-Identifier: Apache-2.0
"""
Structs that lie near each other, read together from this process.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest

from scope_ebpf.beam.memory import process_memory
from scope_ebpf.beam.memory.near import structs
from scope_ebpf.beam.memory.process_memory import Memory
from scope_ebpf.beam.processes.names import _alike
from scope_ebpf.errors import ReadRefusedError

SIZE = 40


def places(count: int, apart: int) -> tuple[mmap.mmap, np.ndarray]:
    """
    Memory in which each word is its own address, and structs in it, out of order.
    """
    memory = mmap.mmap(-1, 1 << 20)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[:] = np.arange(base, base + (1 << 20), 8, np.uint64).tobytes()
    return memory, np.random.default_rng(5).permutation(count).astype(np.uint64) * apart + base


@pytest.mark.parametrize("apart", [48, 4096])
def test_fields_are_those_of_their_structs(apart: int):
    """
    Side by side or far from each other: each has its own words, and all were read.
    """
    held, addresses = places(200, apart)
    memory = Memory(os.getpid())
    found = structs(memory, addresses, SIZE)
    assert found.read.all()
    # Together with what lies between them, or alone.
    assert memory.bytes_read == (199 * apart + SIZE if apart == 48 else 200 * SIZE)
    for offset in (0, 32):
        assert np.array_equal(found.column(offset, np.uint64), addresses + np.uint64(offset))
    assert np.array_equal(found.column(4, np.uint32), addresses >> np.uint64(32))
    assert len(held) == 1 << 20


def test_what_cannot_be_read_spoils_no_neighbour():
    """
    Of seven structs side by side one lies where nothing is: the others are read, it is zero, and
    one reading failed.
    """
    held = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(held))
    held[:] = b"\x17" * len(held)
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.munmap(ctypes.c_void_p(base + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE))
    addresses = np.array([base + at for at in (0, 64, 128, 192, mmap.PAGESIZE - 64)], np.uint64)
    addresses = np.append(addresses, np.uint64(base + mmap.PAGESIZE))
    addresses = np.append(addresses, np.uint64(base + 2 * mmap.PAGESIZE))
    memory = Memory(os.getpid())
    found = structs(memory, addresses, SIZE)
    assert [True] * 5 + [False, True] == found.read.tolist()
    assert 1 == memory.failures
    assert [0x17] * 5 + [0, 0x17] == found.column(3, np.uint8).tolist()
    # Mapped again: the object unmaps all of it.
    again = libc.mmap
    again.restype = ctypes.c_void_p
    where = again(
        ctypes.c_void_p(base + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 3, 0x32, -1, 0
    )
    assert where == base + mmap.PAGESIZE


def test_structs_are_read_alone_where_they_are_too_much_together(monkeypatch: pytest.MonkeyPatch):
    """
    What lies between them does not make a reading too large that is not too large without it.
    """
    held, addresses = places(200, 1024)
    monkeypatch.setattr(process_memory, "MAX_READ", 200 * SIZE)
    found = structs(Memory(os.getpid()), addresses, SIZE)
    assert np.array_equal(found.column(8, np.uint64), addresses + np.uint64(8))
    assert len(held) == 1 << 20


@pytest.mark.parametrize(("offset", "kind"), [(36, np.uint64), (40, np.uint64), (-8, np.uint64)])
def test_a_field_outside_of_its_struct_is_refused(offset: int, kind: type):
    """
    So is one that begins where none can.
    """
    held, addresses = places(3, 48)
    found = structs(Memory(os.getpid()), addresses, SIZE)
    with pytest.raises(ReadRefusedError):
        found.column(offset, kind)
    assert len(held) == 1 << 20


def test_processes_with_a_dictionary_stand_for_themselves():
    """
    Of 300 processes of three kinds those without a dictionary are three, each one of its kind.
    """
    names = ("module", "function", "arity", "current", "pc", "dictionary")
    rows = np.zeros(300, [(name, np.uint64) for name in names])
    rows["pc"] = np.arange(300) % 3
    rows["dictionary"][::10] = 8
    index, like = _alike(rows)
    assert 3 + 30 == len(index)
    stands = rows[index][like]
    assert np.array_equal(stands, rows)
    assert np.array_equal(index[like][::10], np.arange(300)[::10])
