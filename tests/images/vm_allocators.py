# SPDX-License-Identifier: Apache-2.0
"""
Allocators of an image, and what ``erlang:memory/0`` makes of them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from space import packed
from vm_base import SLOTS

if TYPE_CHECKING:
    from measured import Measured
    from vm_base import Image

#: Allocators of alloc_util by the name of their number, and their own names.
_ALLOCATORS: Final = {
    "temporary": "temp", "short_lived": "sl", "standard": "std", "long_lived": "ll",
    "eheap": "eheap", "ets": "ets", "fixed_size": "fix", "literal": "literal",
    "binary": "binary", "driver": "driver",
}  # fmt: skip
_NUMBERS: Final = 12
#: Types of fix_alloc that the VM takes for memory of processes, with what one is large.
_OF_PROCESSES: Final = ("proc", "msg_ref", "ll_ptimer", "hl_ptimer", "bif_timer", "monitor", "link")


def allocators(image: Image) -> None:
    numbers_ = {image.release.allocators[name]: text for name, text in _ALLOCATORS.items()}
    infos = specs = b""
    image.truth["allocators"] = {}
    image.truth["fixed"] = [0, 0]
    blocks = dict.fromkeys(numbers_, 0)
    for number in range(_NUMBERS + 1):
        if number not in numbers_:
            infos, specs = infos + packed(0, 0, 0), specs + packed(0, 0, 0)
            continue
        count = image.schedulers[0] + 1
        found = [_instance(image, number, numbers_[number], ix, blocks) for ix in range(count)]
        pointers = image.space.words(*found)
        # enabled, dirty schedulers, and the number of instances (ErtsAllocatorThrSpec_t)
        specs += struct.pack("<4iQ", 1, 0, count - 1, count, pointers)
        infos += struct.pack("<4iQ", 1, 1, 1, 0, 0)
    at = image.variable("erts_allctr_thr_spec", specs)
    # What is thread-specific leads to its specification.
    made = bytearray(infos)
    for number in numbers_:
        struct.pack_into("<Q", made, 24 * number + 16, at + 24 * number)
    image.variable("erts_allctrs_info", bytes(made))
    image.variable("erts_total_code_size", packed(4_210_003))
    image.variable("erts_ets_misc_mem_size", packed(65_551))
    _use(image, {numbers_[number]: size for number, size in blocks.items()})


def _instance(image: Image, number: int, name: str, ix: int, blocks: dict[int, int]) -> int:
    """
    One instance; what lies in it is added to *blocks* and to the truth.
    """
    release = image.release
    data = bytearray(
        image.struct(
            "Allctr_t",
            name_prefix=(image.space.put(f"{name}_".encode() + b"\0"), "Q"),
            alloc_no=(number, "I"),
            ix=(ix, "i"),
            cpool__util_limit=(60 * (ix > 0), "Q"),
            cpool__stat__carriers_size=(262_144 * (ix > 0), "Q"),
            cpool__stat__no_carriers=(1 * (ix > 0), "Q"),
            fix=(_fixed(image, pooled=ix > 0) if name == "fix" else 0, "Q"),
        )
    )
    kinds = image.truth["allocators"].setdefault(
        name, {"mbcs": [0, 0], "sbcs": [0, 0], "mbcs_pool": [0, 0]}
    )
    other = number % 9 + 2  # another allocator has a block in its carriers
    own = 41 + ix
    if name == "fix":  # with one of its own, those in the pool and those in another's carriers
        own = sum(_made(index) for index in range(release.fixed["count"])) - 1 - 4 * (ix > 0) - 3
    planted = {
        "mbcs": ((2, 5 << 17), {number: (own, 30_011 + 8 * ix + number), other: (3, 1_009)}),
        "sbcs": ((1, 1 << 21), {number: (1, 1_900_003)}),
        "mbcs_pool": ((0, 262_144 * (ix > 0)), {number: (4, 2_003)} if ix else {}),
    }
    for kind, ((count, size), inside) in planted.items():
        if kind == "mbcs_pool":
            first = release.offset("Allctr_t", "cpool.stat.blocks_size")
            struct.pack_into(f"<{2 * _NUMBERS}Q", data, first, *[0] * 2 * _NUMBERS)
        else:
            _figures(
                data, release.offset("Allctr_t", f"{kind}.carriers"),
                [(count, size), (0, 0), (0, 0), (count + 1, size + 4096), (count + 2, size + 8192)],
                16,
            )  # fmt: skip
            first = release.offset("Allctr_t", f"{kind}.blocks")
            _figures(data, first, [(0, 0)] * _NUMBERS, 48)
        for of, (how_many, bytes_) in inside.items():
            if kind == "mbcs_pool":
                struct.pack_into("<Q", data, first + 8 * (of - 1), bytes_)
                struct.pack_into("<Q", data, first + 8 * (_NUMBERS + of - 1), how_many)
            else:
                there = (how_many, bytes_)
                most = (how_many + 7, bytes_ + 8_009)
                _figures(data, first + 48 * (of - 1), [there, most, most], 16)
            blocks[of] += bytes_
            kinds[kind][1] += bytes_
        kinds[kind][0] += size
    return image.space.put(bytes(data))


def _figures(data: bytearray, at: int, values: list[tuple[int, int]], step: int) -> None:
    """
    Numbers and bytes, each with zeros up to the next.
    """
    for index, value in enumerate(values):
        struct.pack_into(f"<{step // 8}Q", data, at + step * index, *value, *[0] * (step // 8 - 2))


def _fixed(image: Image, *, pooled: bool) -> int:
    """
    Lists of blocks of one size. Their figures lie elsewhere where the instance pools no carriers.
    """
    release = image.release
    by_index = {at: name for name, at in release.fixed.items() if name != "count"}
    arm = "cpool" if pooled else "nocpool"
    data = b""
    for index in range(release.fixed["count"]):
        name = by_index[index]
        size = _size_of_type(release, name) or 40 + 8 * index
        allocated, used = _made(index), 31 + index
        data += image.struct(
            "ErtsAlcFixList_t",
            type_size=(size, "Q"),
            list_size=(allocated - used, "i"),
            type=(400 + index, "H"),
            **{f"u__{arm}__allocated": (allocated, "Q"), f"u__{arm}__used": (used, "Q")},
        )
        if name in _OF_PROCESSES:
            image.truth["fixed"][0] += size * allocated
            image.truth["fixed"][1] += size * used
    return image.space.put(data)


def _made(index: int) -> int:
    """
    Blocks that a list of one type has made.
    """
    return 57 + 2 * index


def _size_of_type(release: Measured, name: str) -> int:
    """
    Bytes of a block of one type, where that is a struct that is measured; else 0.
    """
    if name == "msg_ref":  # a message without the heap fragment that may lie in it
        return release.offset("ErtsMessage", "hfrag.next")
    structs = {
        "proc": "Process",
        "monitor": "ErtsMonitorDataHeap",
        "link": "ErtsILink" if "ErtsILink" in release.structs else "ErtsLinkData",
    }
    return release.size(structs[name]) if name in structs else 0


def _use(image: Image, blocks: dict[str, int]) -> None:
    """
    ``erlang:memory/0`` (OTP-25.2.3 erts/preloaded/src/erlang.erl and erts_memory, erl_alloc.c).
    """
    table = SLOTS * (8 + 4)
    code = None if image.hidden else 4_210_003
    outside = code if image.release.build != "emu" else 0
    allocated, used = image.truth["fixed"]
    image.truth["blocks"] = blocks
    image.truth["use"] = {
        "total": None if outside is None else sum(blocks.values()) + outside,
        "processes": blocks["eheap"] + allocated + table,
        "processes_used": blocks["eheap"] + used + table,
        "binary": blocks["binary"],
        "ets": None if image.hidden else blocks["ets"] + 65_551,
        "loaded_code": code,
    }
